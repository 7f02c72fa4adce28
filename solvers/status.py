"""Every sample's best point, residual, step count and verdict, as a solve goes on."""

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from solvers.coupling import Coupling
from solvers.norms import SAFE_NORMS, row_norms
from solvers.packing import StatePacking
from solvers.solution import Result, Solution
from solvers.torch_internals import version_of
from solvers.types import Flat, Index, Mask, PerSample
from solvers.verdicts import STALL_STEPS, Past, StopRule, stalled
from solvers.verdicts_fast import usual_step

if TYPE_CHECKING:
    from solvers.base import FixedPointSolver

RUNNING = -1
# A residual that has grown so much beyond the first one, and the first f(y), has diverged:
# transient growth of a non-normal map that still converges stays far below.
DIVERGED_GROWTH = 1e6
# A matrix product of one or two rows is rounded worse than one of four and takes as long, and a
# slow sample near its limit pays for that in steps: states of so many entries keep finished rows.
FEW_ROWS, ENTRIES = 4, range(64, 1025)
# Up to so many numbers, a copy costs no memory worth saving.
MANY_NUMBERS = 2**14


# What the status holds for each sample.
COLUMNS = [
    "index", "value", "norm", "best", "first", "start", "peak", "limit", "mark", "result",
    "num_steps", "rested",
]  # fmt: skip


class SampleStatus:
    """Judge each sample by its residual, and keep its best point, step count and verdict.

    With `independent` samples a verdict is final. Otherwise (`f` got no per-sample args, so
    it always sees the whole batch and may couple samples) a converged sample is judged anew
    at every evaluation and resumes if its neighbours moved it. The same holds between the
    samples of one row when `batch_dims` > 1, such as tokens; there the last joint point is
    reported, since best points of different steps do not belong together.
    """

    def __init__(
        self,
        y: Flat,
        packing: StatePacking,
        *,
        solver: "FixedPointSolver",
        independent: bool,
        rhs: Flat | None = None,
    ):
        self.packing, self.rtol = packing, solver.rtol
        self.root = math.sqrt(max(y.shape[1], 1))
        self.atol = solver.atol * self.root
        self.rule = StopRule(
            rtol=solver.rtol,
            atol=self.atol,
            roundoff=max(torch.finfo(dtype).eps for dtype in packing.dtypes) / 2,
            growth=DIVERGED_GROWTH if rhs is None and not solver.linear else math.inf,
        )
        self.smallest, self.largest = SAFE_NORMS[y.dtype]
        self.atol_tensor = torch.full((), self.atol, dtype=y.dtype, device=y.device)
        # Smallest norm that the fast path of a usual step may handle.
        self.floor = self.atol_tensor.clamp(min=self.smallest)
        self.coupling = Coupling(packing, independent)
        self.independent, self.joint = independent, self.coupling.joint
        self.coupled = self.coupling.coupled
        # Whether `value` holds points, or residuals, of different steps although they may depend
        # on each other: it must then be measured as a whole.
        self.mixes_steps = False
        count = len(y)
        # While `borrowed`, this is the loop's own point, or the caller's; it is copied before it is
        # returned.
        self.value, self.borrowed, self.version = y, True, version_of(y)
        self.norm = y.new_full((count,), math.inf, requires_grad=False)
        self.best = self.norm
        # Residual and norm of f(y) at the start, the largest residual since, and the residual
        # beyond which a sample has diverged.
        self.first, self.start, self.peak, self.limit = [self.norm] * 4
        # Of a linear equation, `start` holds the norm of the right-hand side instead.
        self.given_scale = rhs is not None
        if rhs is not None:
            self.start = _sizes(rhs, independent)
        # The smallest residual at the last check for stalls.
        self.mark, self.next_look = self.norm, STALL_STEPS
        self.result = torch.full((count,), RUNNING, dtype=torch.int8, device=y.device)
        self.num_steps = torch.zeros(count, dtype=torch.int64, device=y.device)
        self.num_running, self.stopped, self.stopped_rows = count, None, None
        # The samples that had stopped when a solver last gave up on some.
        self.rested = torch.zeros_like(self.result, dtype=torch.bool)
        # Norms of f(y) - y and of f(y) at the last point, and for which samples it was a trial.
        self.latest: tuple[PerSample, PerSample, Mask | None] | None = None
        self.routine = self.may_compact = False
        # Whether the next point is a function of the last one alone, but not f of it. A sample that
        # such a step does not move will not move any more.
        self.may_stand = False
        # Steps since the counts were last settled; they apply to all running samples.
        self.pending_steps = 0
        self.improved: torch.Tensor | None = None
        self.index: Index | None = None
        self.removed: list[tuple[Index, Flat, PerSample, torch.Tensor, torch.Tensor]] = []

    def update(self, y: Flat, fy: Flat, step: int, trial: Mask | None = None) -> int:
        """Record the residuals at `y`, update the verdicts, and count the running samples."""
        with torch.no_grad() if torch.is_grad_enabled() else contextlib.nullcontext():
            usual = (self.routine or step == 0) and not (self.coupled and step >= self.next_look)
            routine = usual and usual_step(self, y, fy, step, trial)
            recorded = self.improved if routine else self._judge_each(y, fy, step, trial)
        self._store(recorded, y)
        return self.num_running

    def advance(self, y: Flat, y_next: Flat) -> Flat:
        """Count one update of the running samples, and keep the others where they are."""
        self.pending_steps += 1
        if self.may_stand and not self.coupled:
            self._stop_those_who_stand(y, y_next)
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

    def _stop_those_who_stand(self, y: Flat, y_next: Flat) -> None:
        """Stall independent samples that a step does not move at all."""
        with torch.no_grad():
            self.stop((y_next == y).all(1), Result.stalled)

    def give_up(self, samples: Mask) -> None:
        """Stall samples that the solver gave up, once no other can influence them any more."""
        if self.coupled:
            settled = self.result >= 0
            # If an influencing sample has only just stopped, allow one more step.
            unchanged = self.coupling.at_rest(settled == self.rested)
            samples, self.rested = (
                samples & unchanged & self.coupling.at_rest(samples | settled),
                settled,
            )
        self.stop(samples, Result.stalled)

    def stop(self, samples: torch.Tensor, result: Result) -> None:
        """End those of the samples (a mask) that still run."""
        samples = samples & (self.result == RUNNING)
        if bool(samples.any()):
            self._settle_counts()
            self.result.masked_fill_(samples, int(result))
            self._count_running()

    def begin(self, norm: PerSample, scale: PerSample) -> None:
        """Record the norms at the start."""
        self.first = self.peak = self.coupling.largest(norm)
        if not self.given_scale:
            self.start = self.coupling.largest(scale)
        self.limit = self.rule.growth_limit(self.past)

    @property
    def past(self) -> Past:
        """The norms of earlier points that the rule needs."""
        return Past(self.first, self.start, self.peak)

    def truly(self, norm: PerSample, scale: PerSample) -> Mask:
        """See `StopRule.truly`."""
        return self.rule.truly(norm, scale, self.past)

    def _judge_each(self, y: Flat, fy: Flat, step: int, trial: Mask | None) -> torch.Tensor:
        """Apply the rule sample by sample; return a mask of the points to store."""
        self._settle_counts()
        norm, scale = self._norms(y, fy)
        self.latest = norm, scale, trial
        if step == 0:
            self.begin(norm, scale)
        recorded = self._judge(norm, scale, self.coupling.settled(self.result), step, trial)
        self._count_running()
        stale = ~recorded & (self.result != Result.converged)
        self.mixes_steps = self.coupled and bool(stale.any())
        return recorded

    def _count_running(self) -> None:
        self.set_stopped(self.result != RUNNING)

    def set_stopped(self, stopped: torch.Tensor) -> None:
        """Set the mask of stopped samples, and all that follows from it."""
        rows = stopped.nonzero().flatten()
        self.num_running = len(stopped) - len(rows)
        self.stopped, self.stopped_rows = (stopped, rows) if len(rows) else (None, None)
        # Tokens of one row are judged together, and so are coupled samples once one has failed.
        alone = self.independent or not bool((self.result > 0).any())
        self.routine = self.stopped is None or (alone and not self.joint)
        self.may_compact = len(rows) > 0

    def _settle_counts(self) -> None:
        """Add the pending steps to the counts of all running samples."""
        if self.num_running == 0:
            return
        self.num_steps += (self.result == RUNNING) * self.pending_steps
        self.pending_steps = 0

    def remove(self, share: float, evaluate: Callable[[Flat], Flat]) -> tuple[Index, Index] | None:
        """Remove stopped rows from the batch if they make up `share` of it.

        Returns:
            The rows of the first batch dim, and of the matrix, that stay; None if all do.
        """
        few = self.num_running > (1 - share) * len(self.result) and not self.joint
        if few or not self.may_compact:
            return None
        self.may_compact = False
        alive = self.result == RUNNING
        if self.joint:
            alive = alive.view(-1, self.packing.samples_per_row).any(1)
        rows = alive.nonzero().flatten()
        fewest = FEW_ROWS if self.value.numel() // len(alive) in ENTRIES else 0
        if len(rows) < fewest:
            padding = (~alive).nonzero().flatten()[: fewest - len(rows)]
            rows = alive.index_fill_(0, padding, True).nonzero().flatten()
        if len(rows) > (1 - share) * len(alive):
            return None
        gone = self.packing.sample_index((~alive).nonzero().flatten())
        kept = self.packing.sample_index(rows)
        if self.mixes_steps:  # samples that stay are judged at the next step anyway
            self.measure(evaluate(self.value), gone)
        if self.index is None:
            self.index = torch.arange(len(self.result), device=self.result.device)
        self._remove(gone)
        for name in COLUMNS:
            setattr(self, name, getattr(self, name).index_select(0, kept))
        if self.latest is not None:
            norm, scale, trial = self.latest
            trial = None if trial is None else trial.index_select(0, kept)
            self.latest = norm.index_select(0, kept), scale.index_select(0, kept), trial
        self.borrowed = False
        self._count_running()
        return rows, kept

    def stopped_samples(self) -> Mask:
        """Mask of all samples, including those that left the batch: which have a verdict."""
        if self.index is None:
            return self.result >= 0
        count = len(self.index) + sum(len(part[0]) for part in self.removed)
        gone = torch.ones(count, dtype=torch.bool, device=self.result.device)
        return gone.index_copy(0, self.index, self.result >= 0)

    def finish(self, num_evals: int, rows_evaluated: int, ended: bool = True) -> Solution:
        """Return the solution so far; samples that still run have used up the step budget.

        Args:
            num_evals: Calls of `f` so far.
            rows_evaluated: Rows in them.
            ended: Whether no update follows; if one may, tensors that it changes are copied.
        """
        self._settle_counts()
        value, norm, num_steps = self.value, self.norm, self.num_steps
        result = self._verdicts()
        if self.index is not None:
            columns = [*self.removed, (self.index, value, norm, result, num_steps)]
            index, value, norm, result, num_steps = map(torch.cat, zip(*columns, strict=True))
            order = index.argsort()
            value, norm, result, num_steps = (
                column.index_select(0, order) for column in (value, norm, result, num_steps)
            )
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
        running = self.result == RUNNING
        result = self.result.masked_fill(running, int(Result.max_steps))
        if self.latest is None or self.num_running == 0:
            return result
        norm, scale, trial = self.latest
        far = self.rule.ran_away(norm, scale, self.past)
        diverged = (far | (norm > self.limit)) & running
        if trial is not None:
            diverged &= ~trial
        return result.masked_fill(diverged, int(Result.diverged))

    def _store(self, recorded: torch.Tensor | None, y: Flat) -> None:
        """Store some points (None: all), in place unless autograd records the solver."""
        if recorded is None:
            self.value, self.borrowed, self.version = y, True, version_of(y)
        elif self.borrowed or torch.is_grad_enabled():
            if self.borrowed:
                check_unchanged(self.value, self.version)
            self.value, self.borrowed = torch.where(recorded[:, None], y, self.value), False
        else:
            torch.where(recorded[:, None], y, self.value, out=self.value)

    def measure(self, fy: Flat, samples: Index | None = None) -> None:
        """Set residuals and verdicts of some samples (None: all) from `fy` = f(value)."""
        norm, scale = self._norms(self.value, fy)
        converged = self.rule.converged(norm, scale, self.past)
        norm = norm.nan_to_num(nan=math.inf, posinf=math.inf)
        result = self.result.masked_fill(self.result == Result.converged, int(Result.max_steps))
        result[converged] = int(Result.converged)
        if samples is None:
            self.norm, self.result = norm, result
        else:
            self.norm = self.norm.index_copy(0, samples, norm[samples])
            self.result = self.result.index_copy(0, samples, result[samples])

    def _norms(self, y: Flat, fy: Flat) -> tuple[PerSample, PerSample]:
        """Norms of f(y) - y, and of f(y) or, for a linear equation, of its right-hand side."""
        return row_norms(fy - y), self.start if self.given_scale else row_norms(fy)

    def _judge(
        self, norm: PerSample, scale: PerSample, settled: Mask, step: int, trial: Mask | None
    ) -> torch.Tensor:
        """Set `result` of all samples not settled; return a mask of the points to store."""
        known = norm.isfinite() if trial is None else norm.isfinite() & ~trial
        self.peak = torch.where(known, self.rule.peak(norm, scale, self.peak), self.peak)
        converged = self.rule.converged(norm, scale, self.past)
        resumed = (self.result == Result.converged) & ~converged & ~settled
        gain = ((norm < self.best) | converged | resumed) & ~settled
        self.best = torch.where(gain, norm, self.best)
        if bool(resumed.any()):  # this point counts as a new start
            self.first = torch.where(resumed, torch.maximum(norm, self.first), self.first)
            self.start = torch.where(resumed, torch.maximum(scale, self.start), self.start)
            limit = self.rule.growth_limit(self.past)
            self.limit = torch.where(resumed, limit, self.limit)
            # Coupled samples have moved since the best residual at the last check.
            self.mark = self.mark.masked_fill(resumed, math.inf)
        stalled = (norm == 0) & ~converged  # all that the dtype can resolve
        if step >= self.next_look:
            stalled |= self.look(norm, scale, step, trial)
        stalled &= self.coupling.at_rest(stalled | converged | settled)
        code = torch.full_like(self.result, RUNNING)
        code[stalled] = int(Result.stalled)
        far = self.rule.ran_away(norm, scale, self.past)
        grown = (norm > self.limit) & (
            step > self.coupling.patience(self.result, self.value.shape[1])
        )
        diverged = grown | (far & self.rule.nearly(norm, scale))
        nonfinite = ~norm.isfinite()
        if trial is not None:
            diverged, nonfinite = diverged & ~trial, nonfinite & ~trial
        code[diverged] = int(Result.diverged)
        code[nonfinite] = int(Result.nonfinite)
        code[converged] = int(Result.converged)
        self.result = torch.where(settled, self.result, code)
        recorded = (~settled & norm.isfinite()) if self.joint else gain
        self.norm = torch.where(recorded, norm, self.norm)
        return recorded

    def look(self, norm: PerSample, scale: PerSample, step: int, trial: Mask | None) -> Mask:
        """Samples that have stalled, at one of the steps at which stalls are checked for."""
        found = stalled(norm, scale, self.best, self.first, self.mark)
        self.mark, self.next_look = self.best, step + step // 2
        return found if trial is None else found & ~trial

    def _remove(self, gone: Index) -> None:
        assert self.index is not None
        columns = (self.index, self.value, self.norm, self.result, self.num_steps)
        self.removed.append(tuple(column.index_select(0, gone) for column in columns))  # type: ignore[arg-type]


def _sizes(rhs: Flat, independent: bool) -> PerSample:
    """Norms of a right-hand side b. If samples are coupled, at least their root mean square."""
    norm = row_norms(rhs)
    if independent:
        return norm
    known = norm.nan_to_num(0.0, 0.0, 0.0)
    return torch.maximum(norm, row_norms(known[None]) / math.sqrt(max(len(known), 1)))


def check_unchanged(y: Flat, version: int) -> None:
    """Raise a ValueError if a point was written into since it had this version."""
    if version_of(y) != version:
        raise ValueError(
            "`f` wrote into its input, or into a tensor that it returned before. Return a new "
            "tensor: drop `inplace=True`, `out=` and methods such as `mul_`."
        )
