"""A solve that is stepped from outside, by whoever calls the map."""

from typing import Any

import torch

from solvers.loop import Loop
from solvers.solution import Result, Solution
from solvers.types import Index, Mask, State


class Run(Loop):
    """A solve that is stepped from outside: it asks for a point and is told the map's value there.

    `solve` is this loop and nothing more, so that verdicts, values and counts are the same:

        run = solvers.Run(f, y0, x)
        while run.point is not None:
            run.tell(f(run.point, *run.args))
        run.solution()

    Between two steps the solve can be looked at, or samples told to stop. Nothing is recorded for
    gradients. A solver that calls the map itself within a step, as `newton_krylov` does for
    derivatives, uses `f` for that; without such calls `f` is not needed here, and may be None.
    Values told are counted as calls. On an accelerator verdicts are read every few steps only, so
    that the point may be asked for a few times more after the last sample has stopped.

    Args:
        f: The map, or None if all its values are told. Then solvers that call it are refused, and
            tokens stay in the batch until all have stopped.
        y0: See `solve`.
        *args: See `solve`.
        solver: See `solve`. One that consists of whole solves of others, as `robust` does, cannot
            be stepped.
        max_steps: See `solve`.
        batch_dims: See `solve`.
        compact: See `solve`.
        independent: See `solve`.
        scale: See `solve`.
        rhs: The constant part b of an affine map b + K y. Given it, tolerances are relative to
            rms(b) instead of rms(f(y)), since the solution of a nearly singular equation is as
            large as one likes; and growth ends no sample.
        memory: Where to keep the solver's memory of the samples that stop, as pairs of sample
            index and memory; then no sample leaves the batch.
        watch: Called each time that a point was judged; may end samples by `SampleStatus.stop`.

    Attributes:
        point: Where the map is wanted next, in the structure of `y0` and with the rows that are
            left in the batch; None once the solve has ended.

    Raises:
        ValueError: Unknown solver, bad budget, or a solver that cannot be stepped so.
        TypeError: `y0` holds integers.

    Example:
        >>> import solvers
        >>> run = solvers.Run(torch.cos, torch.zeros(1, 1), solver="picard", max_steps=3)
        >>> while run.point is not None:
        ...     print(f"{run.point.item():.2f}")
        ...     run.tell(torch.cos(run.point))
        0.00
        1.00
        0.54
        0.86
        >>> solvers.Result(int(run.solution().result)).name
        'max_steps'
    """

    # The samples that `newly_stopped` has returned; None before its first call.
    _reported: Mask | None = None

    @property
    def args(self) -> tuple[Any, ...]:
        """The args of the rows that are still in the batch."""
        return self.map.args

    @property
    def device(self) -> torch.device:
        """Where the state lives."""
        return self.map.packing.device

    @torch.no_grad()
    def tell(self, fy: State) -> None:
        """Take the value of the map at `point`, and make one step.

        Raises:
            RuntimeError: The solve has ended.
            TypeError: Another structure or dtype than that of `point`.
            ValueError: Another shape than that of `point`, or `point` was written into.
        """
        if self.point is None:
            raise RuntimeError("This solve has ended: `point` is None. Call `solution()`.")
        checked = self.map.checked
        self._tell(checked.packing.accept(self.point, fy, checked.autocast))

    @torch.no_grad()
    def stop(self, samples: Mask, result: Result) -> None:
        """End those of the samples that still run, as at a deadline.

        Args:
            samples: Mask of shape `(*batch,)`, over the samples of `y0`.
            result: Their verdict. None can be declared to have converged.

        Raises:
            ValueError: Another shape or dtype, or a verdict of convergence.
        """
        shape = self.map.packing.batch_shape
        if samples.dtype != torch.bool or samples.shape != shape:
            raise ValueError(
                f"`samples` must be a bool mask of shape {tuple(shape)}: got {samples.dtype} of "
                f"shape {tuple(samples.shape)}."
            )
        if result == Result.converged:
            raise ValueError("A sample converges by its residual: give another `result`.")
        if self._y is None or self._closing is not None:
            return
        status, y = self.status, self._y
        status.stop(samples.flatten()[status.index], result)
        status.refresh(again=True)
        self.point = self._y = None
        if status.num_running == 0:
            self._close()
        else:
            self._ask(status.hold(y))

    @torch.no_grad()
    def solution(self) -> Solution:
        """What is known now: each sample's best point, its residual, and its verdict.

        As long as the solve runs, samples without a verdict count as `max_steps`.
        """
        return self._solution()

    @torch.no_grad()
    def newly_stopped(self) -> tuple[Index, Solution]:
        """Return the rows of the batch that have stopped since the last call, and their solution.

        Rows that may be coupled are returned at the end only, as their verdicts may change before.
        """
        packing = self.map.packing
        before = self._reported
        if before is None:
            before = self.status.result.new_zeros(packing.num_samples, dtype=torch.bool)
        ended = before
        if self.point is None:
            ended = torch.ones_like(before)
        elif not self.status.coupling.coupled:
            status = self.status
            status.refresh()
            now = status.result >= 0
            if (doubt := status.in_doubt()) is not None:
                now &= ~doubt
            ended = torch.ones_like(before).index_copy(0, status.index, now)
        new, self._reported = ended & ~before, ended
        rows = new.view(-1, packing.samples_per_row).any(1).nonzero().flatten()
        solution = self._solution()
        if packing.batch_dims and len(rows) < packing.num_rows:
            solution = solution.rows(rows)
        return rows, solution

    def finish(self) -> Solution:
        """Call `f` until the solve has ended, in the caller's grad mode.

        Raises:
            ValueError: There is no `f`.
        """
        if self.map.checked.f is None:
            raise ValueError("This run has no map to call: `tell` it the values instead.")
        return super().finish()
