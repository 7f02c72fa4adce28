"""The status of a solve on an accelerator, which is read every few steps only.

Python that reads a number from an accelerator waits until all work before it is done, and the
accelerator then waits for Python. So verdicts stay on the device: the rule of `solvers.verdicts` is
applied to all samples at every step, stopped samples are held by a mask, and one small tensor is
read when a sample is likely to be the last one to stop. Until then `f` may be called a few times
too often, which changes no sample: values, verdicts and step counts are those of `SampleStatus`.
"""

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from solvers import stopped
from solvers.norms import row_norms
from solvers.packing import StatePacking
from solvers.solution import Result
from solvers.status import SampleStatus
from solvers.trend import LONGEST, Trend, read, way_left
from solvers.types import Flat, Mask
from solvers.verdicts import RUNNING

if TYPE_CHECKING:
    from solvers.base import FixedPointSolver


class DeferredStatus(SampleStatus):
    """As `SampleStatus`; what Python knows is as old as the last reading."""

    columns = (*SampleStatus.columns, "stale", "doubts")

    def __init__(
        self, y: Flat, packing: StatePacking, *, solver: "FixedPointSolver", **options: Any
    ):
        super().__init__(y, packing, solver=solver, **options)
        # A step that calls `f` many times takes longer than a reading.
        self.trend = Trend(1 if solver.calls_map else LONGEST)
        # The newest point's step, and that at which the last reading was made.
        self.step, self.read_at = 0, -1
        # Points that stem from other steps than the last one, and samples whose claim of
        # convergence is in doubt: as masks, and whether there are any at the last reading.
        self.stale = self.doubts = torch.zeros_like(self.rested)
        self.doubtful, self.rows, self.num_rows = False, self.rested, len(self.rested)

    def update(self, y: Flat, fy: Flat, step: int, trial: Mask | None = None) -> int:
        """See `SampleStatus.update`; the number is that of the last reading."""
        with torch.no_grad() if torch.is_grad_enabled() else contextlib.nullcontext():
            stored = self._judge(y, fy, step, trial)
        self.record(stored, y)
        self.step = step
        if step >= self.trend.due:
            self.refresh()
        return self.num_running

    def _judge(self, y: Flat, fy: Flat, step: int, trial: Mask | None) -> Mask:
        known, stored = self.apply_rule(y, fy, step, trial)
        if self.coupling.coupled:
            stale = ~stored & (known.result != int(Result.converged))
            # Once all have stopped the solve is over, and a sample cannot resume any more.
            runs = (self.result == RUNNING).any()
            stored, self.stale = stored & runs, torch.where(runs, stale, self.stale)
            past = [torch.where(runs, *pair) for pair in zip(known.past, self.past, strict=True)]
            rest = [
                torch.where(runs, *pair) for pair in zip(known[:4], self.known[:4], strict=True)
            ]
            known = known._make([*rest, known.past._make(past)])
        self.known = known
        return stored

    def refresh(self, again: bool = False) -> None:
        """Read what Python has to know, all at once."""
        if self.read_at == self.step and not again:
            return
        self.read_at = self.step
        runs = self.result == RUNNING
        if not self.given_scale:
            self.doubts = stopped.doubtful(self.rule, self.known, row_norms(self.value))
        self.rows = self.rows_alive(self.doubts)
        scale = self.norm if self.latest is None else self.latest.scale
        limit = self.rule.atol + self.rule.rtol * scale
        ways = [way_left(norm, limit, runs) for norm in (self.best, self.past.first)]
        counts = [part.sum() for part in (runs, self.rows, self.stale, self.doubts)]
        running, rows, stale, doubts, *ways = read(*counts, *ways)
        self.num_running, self.num_rows = int(running), int(rows)
        self.mixes_steps, self.doubtful = stale > 0, doubts > 0
        self.may_compact = self.num_running < len(runs)
        self.trend.follow(self.step, *ways)

    def alive(self) -> tuple[Mask, int]:
        """See `SampleStatus.alive`."""
        return self.rows, self.num_rows

    def advance(self, y: Flat, y_next: Flat) -> Flat:
        """See `SampleStatus.advance`."""
        self.num_steps += self.result == RUNNING
        if self.may_stand and not self.coupling.coupled:
            self.stop((y_next == y).all(1), Result.stalled)
        return self.hold(y_next)

    def hold(self, y_next: Flat) -> Flat:
        """See `SampleStatus.hold`."""
        return torch.where((self.result == RUNNING)[:, None], y_next, self.value)

    def stop(self, samples: Mask, result: Result) -> None:
        """See `SampleStatus.stop`."""
        self.result.masked_fill_(samples & (self.result == RUNNING), int(result))

    def set_stopped(self, stopped: Mask) -> None:
        """Nothing, as all follows from `result`."""

    def in_doubt(self) -> Mask | None:
        """See `SampleStatus.in_doubt`."""
        return self.doubts if self.doubtful else None
