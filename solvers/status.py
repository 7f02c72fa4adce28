"""Every sample's best point, residual, step count and verdict, as a solve goes on."""

import contextlib
import math
from typing import TYPE_CHECKING

import torch

from solvers.checks import check_unchanged
from solvers.coupling import Coupling
from solvers.norms import row_norms
from solvers.packing import StatePacking
from solvers.solution import Result, Solution
from solvers.stopped import COLUMNS, Columns, doubtful, in_order
from solvers.torch_internals import version_of
from solvers.types import Flat, Index, Mask, PerSample
from solvers.verdicts import (
    RUNNING,
    STALL_STEPS,
    Past,
    Reading,
    StopRule,
    Verdicts,
    judge,
    out_of_budget,
)
from solvers.verdicts_fast import Thresholds, usual_step

if TYPE_CHECKING:
    from solvers.base import FixedPointSolver

# Up to so many numbers, a copy costs no memory worth saving.
MANY_NUMBERS = 2**14


class SampleStatus:
    """Judge each sample by its residual, and keep its best point, step count and verdict.

    With `independent` samples a verdict is final. Otherwise (`f` got no per-sample args, so
    it always sees the whole batch and may couple samples) a converged sample is judged anew
    at every evaluation and resumes if its neighbours moved it. The same holds between the
    samples of one row when `batch_dims` > 1, such as tokens; there the last joint point is
    reported, since best points of different steps do not belong together.
    """

    # What is held of each sample in the batch.
    columns = COLUMNS

    def __init__(
        self,
        y: Flat,
        packing: StatePacking,
        *,
        solver: "FixedPointSolver",
        independent: bool,
        rhs: Flat | None = None,
    ):
        self.packing, self.coupling = packing, Coupling(packing, independent)
        self.root = math.sqrt(max(y.shape[1], 1))
        self.rule = StopRule.of(solver, packing, self.root, linear=rhs is not None)
        self.thresholds = Thresholds.of(self.rule, y)
        # Each sample's best point. While `borrowed`, it is the loop's own point, or the caller's,
        # and is copied before it is returned.
        self.value, self.borrowed, self.version = y, True, version_of(y)
        self.index = torch.arange(len(y), device=y.device)
        # The residual there, the smallest one so far, and that at the last check for stalls.
        self.norm = self.best = self.mark = y.new_full((len(y),), math.inf, requires_grad=False)
        self.next_look = STALL_STEPS
        # For a linear equation the norm of the right-hand side takes the place of that of f(y).
        self.given_scale = rhs is not None
        start = self.norm if rhs is None else self.coupling.sizes(rhs)
        self.past = Past(self.norm, start, self.norm, self.norm)
        # What was measured at the last point.
        self.latest: Reading | None = None
        self.result = torch.full_like(self.norm, RUNNING, dtype=torch.int8)
        # Updates, and those that all who run have made since samples stopped or resumed last.
        self.num_steps, self.uncounted = torch.zeros_like(self.index), 0
        # The samples that have stopped, None if there are none, and how many still run.
        self.stopped: Mask | None = None
        self.stopped_rows: Index | None = None
        self.num_running, self.may_compact = len(y), False
        # Those that had stopped when a solver last gave up on some.
        self.rested = torch.zeros_like(self.result, dtype=torch.bool)
        # Whether the next step may be a usual one, and the samples whose point such a step stores
        # (None: all).
        self.routine = False
        self.improved: Mask | None = None
        # Whether `value` holds points, or residuals, of different steps although they may depend
        # on each other: it must then be measured as a whole.
        self.mixes_steps = False
        # Whether the next point is a function of the last one alone, but not f of it. A sample that
        # such a step does not move will not move any more.
        self.may_stand = False
        # What `finish` reports of the samples that have left the batch.
        self.removed: list[Columns] = []

    @property
    def known(self) -> Verdicts:
        """What the rule knows of every sample."""
        return Verdicts(self.norm, self.best, self.mark, self.result, self.past)

    @known.setter
    def known(self, known: Verdicts) -> None:
        self.norm, self.best, self.mark, self.result, self.past = known

    def update(self, y: Flat, fy: Flat, step: int, trial: Mask | None = None) -> int:
        """Record the residuals at `y`, update the verdicts, and count the running samples."""
        with torch.no_grad() if torch.is_grad_enabled() else contextlib.nullcontext():
            usual = (self.routine or step == 0) and step >= self.rule.least
            usual = usual and not (self.coupling.coupled and step >= self.next_look)
            usual = usual and not self.rule.keeps_last
            usual = usual and usual_step(self, y, fy, step, trial)
            recorded = self.improved if usual else self._judge(y, fy, step, trial)
        if recorded is None:
            self.value, self.borrowed, self.version = y, True, version_of(y)
        else:
            self.record(recorded, y)
        return self.num_running

    def record(self, samples: Mask, y: Flat) -> None:
        """Store the points of these samples."""
        if self.borrowed:
            check_unchanged(self.value, self.version)
        in_place = not self.borrowed and not torch.is_grad_enabled()
        out = self.value if in_place else None
        self.value, self.borrowed = torch.where(samples[:, None], y, self.value, out=out), False

    def advance(self, y: Flat, y_next: Flat) -> Flat:
        """Count one update of the running samples, and keep the others where they are."""
        self.uncounted += 1
        if self.may_stand and not self.coupling.coupled:
            self.stop((y_next == y).all(1), Result.stalled)
        return self.hold(y_next)

    def hold(self, y_next: Flat) -> Flat:
        """Return the points, with stopped samples where they are."""
        if self.stopped is None or self.stopped_rows is None:
            return y_next
        if len(self.stopped_rows) * y_next.shape[1] > MANY_NUMBERS:
            return torch.where(self.stopped[:, None], self.value, y_next)
        # Several times faster for few samples, whose copy hardly adds to the peak of memory.
        kept = self.value.index_select(0, self.stopped_rows)
        return y_next.index_copy(0, self.stopped_rows, kept)

    def give_up(self, samples: Mask) -> None:
        """Stall samples that the solver gave up, once no other can influence them any more."""
        if self.coupling.coupled:
            settled = self.result >= 0
            samples = self.coupling.left_alone(samples, settled, self.rested)
            self.rested = settled
        self.stop(samples, Result.stalled)

    def stop(self, samples: Mask, result: Result) -> None:
        """End those of the samples (a mask) that still run."""
        samples = samples & (self.result == RUNNING)
        if bool(samples.any()):
            self.result.masked_fill_(samples, int(result))
            self.set_stopped(self.result != RUNNING)

    def set_stopped(self, stopped: Mask) -> None:
        """Set the mask of stopped samples, and all that follows from it."""
        self.count_steps()
        rows = stopped.nonzero().flatten()
        self.num_running = len(stopped) - len(rows)
        self.stopped, self.stopped_rows = (stopped, rows) if len(rows) else (None, None)
        # Tokens of one row are judged together, and so are coupled samples once one has failed.
        alone = self.coupling.independent or not bool((self.result > 0).any())
        self.routine = self.stopped is None or (alone and not self.coupling.joint)
        self.may_compact = len(rows) > 0

    def refresh(self, again: bool = False) -> None:
        """Bring up to date what Python knows. Here it always is."""

    def in_doubt(self) -> Mask | None:
        """Samples that have converged so far away that a call of `f` must decide; None: none."""
        # Without a residual larger than the first one there is no doubt.
        if self.given_scale or self.past.peak is self.past.first:
            return None
        found = doubtful(self.rule, self.known, row_norms(self.value))
        return found if bool(found.any()) else None

    def alive(self) -> tuple[Mask, int]:
        """The rows of the batch for which `f` will be called again, and how many these are."""
        rows = self.rows_alive(self.in_doubt())
        return rows, int(rows.sum())

    def rows_alive(self, doubts: Mask | None) -> Mask:
        """Rows with a sample that runs, or is in doubt."""
        alive = self.result == RUNNING
        if doubts is not None:
            alive |= doubts
        return alive.view(-1, self.packing.samples_per_row).any(1) if self.coupling.joint else alive

    def count_steps(self) -> None:
        """Write to each sample what was counted for all who run."""
        if self.uncounted:
            running = 1 if self.stopped is None else ~self.stopped
            self.num_steps += running * self.uncounted
            self.uncounted = 0

    def finish(self, num_evals: int, rows_evaluated: int, ended: bool = True) -> Solution:
        """Return the solution so far; samples that still run have used up the step budget.

        Args:
            num_evals: Calls of `f` so far.
            rows_evaluated: Rows in them.
            ended: Whether no update follows; if one may, tensors that it changes are copied.
        """
        self.count_steps()
        value, norm, num_steps = self.value, self.norm, self.num_steps
        result = self._verdicts()
        if self.removed:
            columns = self.index, value, norm, result, num_steps
            value, norm, result, num_steps = in_order([*self.removed, columns])
        elif not torch.is_grad_enabled() and (self.borrowed or not ended):
            value, num_steps = value.clone(), num_steps.clone()
        shape = self.packing.batch_shape
        return Solution(
            value=self.packing.unpack(value),
            residual=(norm / self.root).view(shape),
            result=result.view(shape),
            num_steps=num_steps.view(shape),
            num_evals=num_evals,
            rows_evaluated=rows_evaluated,
        )

    def _verdicts(self) -> torch.Tensor:
        """The verdicts; samples that still run are out of budget, or have diverged."""
        if self.latest is None or self.num_running == 0:
            return self.result.masked_fill(self.result == RUNNING, int(Result.max_steps))
        return out_of_budget(self.rule, self.known, self.latest)

    def norms(self, y: Flat, fy: Flat) -> tuple[PerSample, PerSample]:
        """Norms of f(y) - y, and of f(y) or, for a linear equation, of its right-hand side."""
        return row_norms(fy - y), self.past.start if self.given_scale else row_norms(fy)

    def read(self, y: Flat, fy: Flat) -> Reading:
        """What is measured at a point after the last step."""
        return Reading(*self.norms(y, fy), trial=None, step=0, look=False)

    def begin(self, norm: PerSample, scale: PerSample) -> None:
        """Record the norms at the start."""
        first = self.coupling.largest(norm)
        start = self.past.start if self.given_scale else self.coupling.largest(scale)
        self.past = self.rule.past(first, start, first)

    def apply_rule(self, y: Flat, fy: Flat, step: int, trial: Mask | None) -> tuple[Verdicts, Mask]:
        """Judge sample by sample; return what is known now, and a mask of the points to store."""
        norm, scale = self.norms(y, fy)
        self.latest = Reading(norm, scale, trial, step, step >= self.next_look)
        if step == 0:
            self.begin(norm, scale)
        if self.latest.look:
            self.next_look = step + step // 2
        return judge(self.rule, self.coupling, self.known, self.latest, y.shape[1])

    def _judge(self, y: Flat, fy: Flat, step: int, trial: Mask | None) -> Mask:
        """Apply the rule, and all that follows from it; return a mask of the points to store."""
        self.known, stored = self.apply_rule(y, fy, step, trial)
        self.set_stopped(self.result != RUNNING)
        stale = ~stored & (self.result != Result.converged)
        self.mixes_steps = self.coupling.coupled and bool(stale.any())
        return stored
