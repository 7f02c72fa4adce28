"""The books of one solve: every sample's best point, residual, step count and verdict."""

import contextlib
import math
from collections.abc import Callable

import torch

from solvers.layout import Layout
from solvers.solution import Result, Solution
from solvers.types import Flat, Index, PerSample

RUNNING = -1
# A residual that grows this much beyond the first one, and beyond the first f(y), has diverged:
# transient growth of a non-normal map that still converges stays far below.
DIVERGED_GROWTH = 1e6
# A sample has stalled once its residual has set no new record for this many steps, and for
# half of its life, having come below this share of its first residual or this one of rms(f(y)).
# Above, or sooner, a method that is not monotone may still be finding its way; far above its
# best residual, it diverges.
STALL_STEPS, STALL_SHARE, STALL_FLOOR, STALL_SPREAD = 50, 0.01, 1e-5, 1e3
# Outside, the squares in a norm may leave the dtype's range.
SAFE_NORMS = {torch.float32: (1e-15, 1e15), torch.float64: (1e-150, 1e150)}
# A matrix product of one or two rows is rounded worse than one of four and takes as long, and a
# slow sample near its limit pays for that in steps: states of so many entries keep finished rows.
FEW_ROWS, ENTRIES = 4, range(64, 1025)
# Up to so many numbers, a copy costs no memory worth saving.
MANY_NUMBERS = 2**14


# What the ledger holds for each sample.
COLUMNS = ["index", "value", "norm", "best", "first", "limit", "last_gain", "result", "num_steps"]


class Ledger:
    """Judge samples by their own residuals and keep what each is owed.

    With `independent` samples a verdict is final. Otherwise (`f` got no per-sample args, so
    it always sees the whole batch and may couple samples) a converged sample is judged anew
    at every evaluation and resumes if its neighbours moved it. The same holds between the
    samples of one row when `batch_dims` > 1, such as tokens; there the last joint point is
    reported, since best points of different steps do not belong together.
    """

    def __init__(self, y: Flat, layout: Layout, *, rtol: float, atol: float, independent: bool):
        self.layout, self.rtol = layout, rtol
        self.root = math.sqrt(max(y.shape[1], 1))
        self.atol = atol * self.root
        self.atol_tensor = torch.full((), self.atol, dtype=y.dtype, device=y.device)
        self.independent = independent
        self.joint = layout.batch_dims > 1
        self.coupled = self.joint or not independent
        # Whether `value` holds points, or residuals, of different steps although they may depend
        # on each other: it must then be measured as a whole.
        self.mixes_steps = False
        count = len(y)
        # Copied now, so that memory is the same whether or not samples stop at different times.
        self.value = y.clone()
        self.norm = y.new_full((count,), math.inf, requires_grad=False)
        self.best = self.norm
        self.first = self.norm
        self.limit = self.norm
        self.last_gain = torch.zeros(count, dtype=torch.int64, device=y.device)
        self.result = torch.full((count,), RUNNING, dtype=torch.int8, device=y.device)
        self.num_steps = torch.zeros(count, dtype=torch.int64, device=y.device)
        self.num_running, self.stopped, self.stopped_rows = count, None, None
        # Whether someone failed to improve at the last evaluation.
        self.suspicious = False
        self.routine = self.may_compact = False
        # What holds for all who run is kept as one number until they part.
        self.pending_steps, self.gained_at = 0, 0
        # No sample has waited for a record longer than since this step.
        self.patient_since = 0
        self.improved: torch.Tensor | None = None
        self.smallest, self.largest = SAFE_NORMS[y.dtype]
        self.index: Index | None = None
        self.retired: list[tuple[Index, Flat, PerSample, torch.Tensor, torch.Tensor]] = []

    def observe(self, y: Flat, fy: Flat, step: int) -> int:
        """Record the residuals at `y`, update the verdicts, and count who still runs."""
        with torch.no_grad() if torch.is_grad_enabled() else contextlib.nullcontext():
            routine = (self.routine or step == 0) and self._routine(y, fy, step)
            self.suspicious = not routine
            recorded = self.improved if routine else self._judge_each(y, fy, step)
        self._store(recorded, y)
        return self.num_running

    def advance(self, y: Flat, y_next: Flat) -> Flat:
        """Count one update for those who run; keep the others where they are."""
        self.pending_steps += 1
        if self.suspicious and not self.coupled:
            self._stop_those_who_stand(y, y_next)
        if self.stopped is None or self.stopped_rows is None:
            return y_next
        if len(self.stopped_rows) * y.shape[1] > MANY_NUMBERS:
            return torch.where(self.stopped[:, None], self.value, y_next)
        # Several times faster for a few, whose copy does not count in the peak of memory.
        kept = self.value.index_select(0, self.stopped_rows)
        return y_next.index_copy(0, self.stopped_rows, kept)

    def _stop_those_who_stand(self, y: Flat, y_next: Flat) -> None:
        """A sample that is alone and is not moved by one digit has reached its end."""
        with torch.no_grad():
            self.stop((y_next == y).all(1), Result.stalled)

    def stop(self, samples: torch.Tensor, result: Result) -> None:
        """End those of the samples (a mask) that still run."""
        samples = samples & (self.result == RUNNING)
        if bool(samples.any()):
            self._settle_counts()
            self.result.masked_fill_(samples, int(result))
            self._count_running()

    def _routine(self, y: Flat, fy: Flat, step: int) -> bool:
        """The usual steps, in few operations: samples set a record or not, and some converge.

        Everything else is left to `_judge_each`, with nothing changed.
        """
        norm = torch.linalg.vector_norm(fy - y, dim=1)
        scale = torch.linalg.vector_norm(fy, dim=1)
        limit = torch.add(self.atol_tensor, scale, alpha=self.rtol).clamp(min=self.smallest)
        # False for NaN, and for norms that have left the range of the dtype.
        record = norm < self.best
        usual = (norm > limit).logical_and_(record)
        if self.stopped is not None:
            usual = self._with_stopped(usual, norm, limit)
            norm = torch.where(self.stopped, self.best, norm) if self.independent else norm
        if bool(usual.all()):
            if step == 0:
                self._begin(norm, scale)
                self.routine = True
            self._all_gain(norm, step)
            return True
        return step > 0 and self._uneven(norm, limit, record, step)

    def _begin(self, norm: PerSample, scale: PerSample) -> None:
        self.first = norm
        self.limit = DIVERGED_GROWTH * torch.maximum(norm, scale)

    def _all_gain(self, norm: PerSample, step: int) -> None:
        self.norm = self.best = norm
        self.gained_at = self.patient_since = step
        self.mixes_steps = False
        self.improved = None

    def _uneven(self, norm: PerSample, limit: PerSample, record: torch.Tensor, step: int) -> bool:
        """Some set no record or converge, but nobody can have stalled or diverged."""
        if step - self.patient_since >= STALL_STEPS:
            return False
        converged = norm <= limit
        sound = (norm <= self.limit).logical_and_(norm > self.smallest)
        sound.logical_and_(limit < math.inf)
        gain = record | converged
        if self.stopped is not None:
            sound = self._with_stopped(sound, norm, limit)
            converged.logical_and_(~self.stopped)
            # Where they are kept, what is recorded anew is the same; elsewhere, it is due.
            gain.logical_or_(self.stopped)
        some_converged = bool(converged.any())
        if not bool(sound.all()) or (some_converged and self.joint):
            return False
        if bool(gain.all()):
            self._all_gain(norm, step)
        else:
            self.mixes_steps = self.coupled
            self.norm = self.best = torch.where(gain, norm, self.best)
            self.last_gain = torch.where(gain, step, self.last_gain.clamp(min=self.gained_at))
            self.improved = gain
        if some_converged:
            self.result.masked_fill_(converged, int(Result.converged))
            self.num_steps.add_(converged, alpha=self.pending_steps)
            self._set_stopped(converged if self.stopped is None else self.stopped | converged)
        return True

    def _with_stopped(self, fine: torch.Tensor, norm: PerSample, limit: PerSample) -> torch.Tensor:
        """`fine` of those who run; of the others, whether they are still within tolerance."""
        assert self.stopped is not None
        if self.independent:
            return fine.logical_or_(self.stopped)
        return torch.where(self.stopped, norm <= limit, fine)

    def _judge_each(self, y: Flat, fy: Flat, step: int) -> torch.Tensor:
        """Judge sample by sample; return whose point is a record."""
        self._settle_counts()
        norm, scale, converged = self._residual(y, fy)
        if step == 0:
            self._begin(norm, scale)
        recorded = self._judge(norm, scale, converged, norm < self.best, self._settled(), step)
        self._count_running()
        latest = torch.where(self.result == RUNNING, self.last_gain, step)
        self.patient_since = int(latest.min()) if len(latest) else step
        stale = ~recorded & (self.result != Result.converged)
        self.mixes_steps = self.coupled and bool(stale.any())
        return recorded

    def _count_running(self) -> None:
        self._set_stopped(self.result != RUNNING)

    def _set_stopped(self, stopped: torch.Tensor) -> None:
        num_stopped = int(stopped.sum())
        self.num_running = len(stopped) - num_stopped
        self.stopped = stopped if num_stopped else None
        self.stopped_rows = stopped.nonzero().flatten() if num_stopped else None
        # Tokens that share a row are looked at together, and failures among coupled samples.
        alone = self.independent or not bool((self.result > 0).any())
        self.routine = self.stopped is None or (alone and not self.joint)
        self.may_compact = num_stopped > 0

    def _settle_counts(self) -> None:
        """Write to each sample what was counted for all."""
        running = self.result == RUNNING
        self.num_steps += running * self.pending_steps
        self.last_gain = torch.where(
            running, self.last_gain.clamp(min=self.gained_at), self.last_gain
        )
        self.pending_steps = 0

    def compact(self, share: float, evaluate: Callable[[Flat], Flat]) -> tuple[Index, Index] | None:
        """Retire finished rows if they make up `share` of the batch.

        Returns:
            The rows of the first batch dim, and of the matrix, that stay; None if all do.
        """
        few = self.num_running > (1 - share) * len(self.result) and not self.joint
        if few or not self.may_compact:
            return None
        self.may_compact = False
        alive = (self.result == RUNNING).view(-1, self.layout.samples_per_row).any(1)
        fewest = FEW_ROWS if self.value.numel() // len(alive) in ENTRIES else 0
        padding = (~alive).nonzero().flatten()[: max(fewest - int(alive.sum()), 0)]
        rows = alive.index_fill_(0, padding, True).nonzero().flatten()
        if len(rows) > (1 - share) * len(alive):
            return None
        if self.mixes_steps:
            self.measure(evaluate(self.value))
        gone = self.layout.sample_index((~alive).nonzero().flatten())
        kept = self.layout.sample_index(rows)
        if self.index is None:
            self.index = torch.arange(len(self.result), device=self.result.device)
        self._retire(gone)
        for name in COLUMNS:
            setattr(self, name, getattr(self, name).index_select(0, kept))
        self._count_running()
        return rows, kept

    def solution(self, num_evals: int, rows_evaluated: int) -> Solution:
        """Close the books: whoever still runs has used up the step budget."""
        self._settle_counts()
        self.result = self.result.masked_fill(self.result == RUNNING, int(Result.max_steps))
        value, norm, result, num_steps = self.value, self.norm, self.result, self.num_steps
        if self.index is not None:
            self._retire(torch.arange(len(result), device=result.device))
            index, value, norm, result, num_steps = map(torch.cat, zip(*self.retired, strict=True))
            order = index.argsort()
            value, norm, result, num_steps = (
                column.index_select(0, order) for column in (value, norm, result, num_steps)
            )
        shape = self.layout.batch_shape
        return Solution(
            value=self.layout.unpack(value),
            residual=(norm / self.root).view(shape),
            result=result.view(shape),
            num_steps=num_steps.view(shape),
            num_evals=num_evals,
            rows_evaluated=rows_evaluated,
        )

    def _store(self, recorded: torch.Tensor | None, y: Flat) -> None:
        """Take over some points (None: all), in place unless autograd records the solver."""
        if torch.is_grad_enabled():
            self.value = y if recorded is None else torch.where(recorded[:, None], y, self.value)
        elif recorded is None:
            self.value.copy_(y)
        else:
            torch.where(recorded[:, None], y, self.value, out=self.value)

    def measure(self, fy: Flat) -> None:
        """Take the residuals, and with them the verdicts, from `fy` = f(value)."""
        norm, _, converged = self._residual(self.value, fy)
        self.norm = norm.nan_to_num(nan=math.inf)
        self.result[~converged & (self.result == Result.converged)] = int(Result.max_steps)
        self.result[converged] = int(Result.converged)

    def _residual(self, y: Flat, fy: Flat) -> tuple[PerSample, PerSample, torch.Tensor]:
        """Norm of f(y) - y, norm of f(y), and who is within tolerance."""
        difference = fy - y
        norm = torch.linalg.vector_norm(difference, dim=1)
        scale = torch.linalg.vector_norm(fy, dim=1)
        odd = ~((norm > self.smallest) & (norm < self.largest))
        if bool(odd.any()):
            rows = odd.nonzero().flatten()
            norm[rows] = _scaled_norm(difference[rows])
            scale[rows] = _scaled_norm(fy[rows])
        converged = (norm <= self.rtol * scale + self.atol) & (norm < math.inf)
        return norm, scale, converged

    def _settled(self) -> torch.Tensor:
        """Samples whose verdict is final."""
        if not self.joint:
            return (self.result >= 0) if self.independent else (self.result > 0)
        closed = (self.result >= 0).view(-1, self.layout.samples_per_row).all(1, keepdim=True)
        closed = closed.expand(-1, self.layout.samples_per_row).flatten()
        return (self.result > 0) | (closed & self.independent)

    def _judge(
        self,
        norm: PerSample,
        scale: PerSample,
        converged: torch.Tensor,
        improved: torch.Tensor,
        settled: torch.Tensor,
        step: int,
    ) -> torch.Tensor:
        """Set `result` for all who are not settled; return whose point is to be recorded."""
        resumed = (self.result == Result.converged) & ~converged
        gain = (improved | converged | resumed) & ~settled
        self.best = torch.where(gain, norm, self.best)
        self.last_gain = torch.where(gain, step, self.last_gain)
        self.limit = torch.where(resumed, DIVERGED_GROWTH * norm, self.limit)
        patience = max(STALL_STEPS, step // 2)
        low = (self.best <= STALL_SHARE * self.first) | (self.best <= STALL_FLOOR * scale)
        flat = low & (norm <= STALL_SPREAD * self.best)
        stalled = flat & (step - self.last_gain >= patience)
        if self.joint:
            quiet = (stalled | converged | settled).view(-1, self.layout.samples_per_row).all(1)
            stalled &= quiet.repeat_interleave(self.layout.samples_per_row)
        code = torch.full_like(self.result, RUNNING)
        code[stalled] = int(Result.stalled)
        code[norm > self.limit] = int(Result.diverged)
        code[~norm.isfinite()] = int(Result.nonfinite)
        code[converged] = int(Result.converged)
        self.result = torch.where(settled, self.result, code)
        recorded = (~settled & norm.isfinite()) if self.joint else gain
        self.norm = torch.where(recorded, norm, self.norm)
        return recorded

    def _retire(self, gone: Index) -> None:
        assert self.index is not None
        columns = (self.index, self.value, self.norm, self.result, self.num_steps)
        self.retired.append(tuple(column.index_select(0, gone) for column in columns))  # type: ignore[arg-type]


def _scaled_norm(rows: Flat) -> PerSample:
    """Norms whose squares stay within range; NaN and inf where an entry is."""
    largest = torch.linalg.vector_norm(rows, math.inf, dim=1)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return torch.linalg.vector_norm(rows / unit[:, None], dim=1) * unit
