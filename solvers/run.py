"""A solve under way, step by step: the one loop that every solver runs in.

A solver says how to `init` its memory and how to make one `step`. Asking for values of the map,
judging each sample, holding the stopped ones still and dropping them from the batch happen here.
"""

from typing import Any

import torch

from solvers import compaction
from solvers.base import FixedPointSolver
from solvers.checks import check_counts, check_flag, check_unchanged
from solvers.counted_map import CountedMap
from solvers.packing import StatePacking
from solvers.registry import SOLVERS
from solvers.solution import Result, Solution
from solvers.status import SampleStatus
from solvers.torch_internals import version_of
from solvers.transforms import check_readable
from solvers.trees import take_rows
from solvers.types import Flat, Index, Map, Mask, State, Watch


class Run:
    """A solve that is stepped from outside: it asks for a point and is told the map's value there.

    `solve` is this loop and nothing more, so that verdicts, values and counts are the same:

        run = solvers.Run(f, y0, x)
        while run.point is not None:
            run.tell(f(run.point, *run.args))
        run.solution()

    Between two steps the solve can be looked at, or samples told to stop. Nothing is recorded for
    gradients. A solver that calls the map itself within a step, as `newton_krylov` does for
    derivatives, uses `f` for that; without such calls `f` is not needed here, and may be None.
    Values told are counted as calls. (There are more parameters than our limit of eight, since
    each is a property of this one problem and most calls give none.)

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

    def __init__(
        self,
        f: Map | None,
        y0: State,
        *args: Any,
        solver: str | FixedPointSolver = "anderson",
        max_steps: int = 50,
        batch_dims: int = 1,
        compact: bool = True,
        independent: bool | None = None,
        scale: Any = None,
        rhs: State | None = None,
        memory: list[tuple[Index, Any]] | None = None,
        watch: Watch | None = None,
    ):
        check_counts(max_steps, batch_dims)
        check_flag("compact", compact)
        independent = bool(args) if independent is None else independent
        check_flag("independent", independent)
        self.solver = SOLVERS.resolve(solver)
        _check_steps(self.solver, f)
        packing = StatePacking(y0, batch_dims, scale)
        self.solver.check_tokens(packing)
        constant = None if rhs is None else packing.pack(rhs)
        self.map = CountedMap(f, args, packing, constant)
        self.max_steps, self.memory, self.watch = max_steps, memory, watch
        y = packing.pack(y0)
        check_readable(y)
        self.compact = compact and bool(args) and independent and memory is None
        self.status = SampleStatus(
            y, packing, solver=self.solver, independent=independent, rhs=constant
        )
        self.carry = self.solver.init(y)
        self._step, self._measuring = 0, False
        self._doubtful: Mask | None = None
        self._reported = torch.zeros_like(self.status.result, dtype=torch.bool)
        self.point: State | None = None
        self._y: Flat | None = None
        if packing.num_samples:
            self._ask(y)

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
        if self._y is None or self._measuring or self._doubtful is not None:
            return
        status, y = self.status, self._y
        status.stop(samples.flatten()[status.index], result)
        self.point = self._y = None
        if status.num_running == 0:
            self._end()
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
        packing, stopped = self.map.packing, self._reported
        if self.point is None:
            stopped = torch.ones_like(stopped)
        elif not self.status.coupling.coupled:
            stopped = self.status.stopped_samples()
            if (doubtful := self.status.doubtful()) is not None:
                stopped[self.status.index[doubtful]] = False
        new, self._reported = stopped & ~self._reported, stopped
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
        while self.point is not None:
            self._tell(self.map.evaluate(self.point))
        return self._solution()

    def _ask(self, y: Flat) -> None:
        """Set `point`, and wait for the value there."""
        self._y, self._version = y, version_of(y)
        self.point = self.map.packing.unpack(y)

    def _tell(self, told: State) -> None:
        """Judge all samples by the value at the point, and make one step."""
        y, evaluate, status, solver = self._y, self.map, self.status, self.solver
        assert y is not None
        check_unchanged(y, self._version)
        fy = evaluate.take(told)
        # So that memory does not peak within the step.
        del told
        self.point = self._y = None
        if self._doubtful is not None:
            status.confirm(self._doubtful, y, fy)
            return
        if self._measuring:
            status.measure(fy)
        else:
            status.update(y, fy, self._step, solver.on_trial(self.carry))
        if self.watch is not None:
            self.watch(evaluate, status, y, fy)
        if self._measuring:
            self._doubt()
            return
        if status.num_running == 0 or self._step == self.max_steps:
            self._end()
            return
        if self.memory is not None:
            self._remember(status.result >= 0)
        elif self.compact and not (status.mixes_steps and evaluate.checked.f is None):
            kept = compaction.remove(status, evaluate)
            if kept is not None:
                # One by one, and the arguments last, so that memory does not peak here.
                rows, samples = kept
                y = y.index_select(0, samples)
                fy = fy.index_select(0, samples)
                self.carry = solver.keep(self.carry, samples)
                evaluate.keep(rows)
        with evaluate.checked.full_precision():
            y_next, self.carry = solver.move(y, fy, self.carry, evaluate)
        status.may_stand = self.carry is None and y_next is not fy
        del fy  # where it is not the next iterate, `f` may need its memory
        stuck = solver.given_up(self.carry)
        if stuck is not None:
            status.give_up(stuck)
        y = status.advance(y, evaluate.packing.round(y_next))
        if status.num_running == 0:
            self._end()
            return
        self._step += 1
        self._ask(y)

    def _end(self) -> None:
        """End the solve; a value whose samples stem from different steps is evaluated once more."""
        if self.memory is not None:
            self._remember(torch.ones_like(self._reported))
        if self.status.mixes_steps:
            self._measuring = True
            self._ask(self.status.value)
        else:
            self._doubt()

    def _doubt(self) -> None:
        """Ask for the value beside samples that have converged where rounding may hide the rest."""
        self._doubtful = self.status.doubtful()
        if self._doubtful is not None:
            self._ask(self.map.packing.round(self.status.beside(self._doubtful)))

    def _solution(self) -> Solution:
        evaluate = self.map
        return self.status.finish(
            evaluate.num_evals, evaluate.rows_evaluated, ended=self.point is None
        )

    def _remember(self, stopped: Mask) -> None:
        """Keep the solver's memory of samples that have stopped since the last call."""
        assert self.memory is not None
        for samples, _ in self.memory:
            stopped[samples] = False
        samples = stopped.nonzero().flatten()
        if len(samples):
            self.memory.append((samples, take_rows(self.carry, samples)))


def _check_steps(solver: FixedPointSolver, f: Map | None) -> None:
    """Raise a ValueError unless the solver can be stepped with this map."""
    if solver.whole:
        raise ValueError(
            f"{type(solver).__name__} makes whole solves, not steps of one: it cannot be stepped. "
            "Call `solve`, or step through another solver, such as 'anderson'."
        )
    if f is None and solver.calls_map:
        raise ValueError(
            f"{type(solver).__name__} calls the map within its steps, so that telling it values is "
            "not enough: pass `f`, or use a solver that only steps, such as 'anderson'."
        )
