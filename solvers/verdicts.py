"""The rule by which a sample has converged, runs away, diverges or stalls.

With r = |f(y) - y| and s = |f(y)| at a point, r0 and s0 at the start, and r1 the largest residual
so far that is of the size of s there, a sample has converged if r is finite and

    r <= atol + rtol * s     where r <= FALL * r0,
    r <= atol + rtol * min(s, s0)    elsewhere:

a tolerance that is relative to |f(y)| must not be met by a y that runs away from a residual that
never falls. Nor by a y so large that rounding hides the residual, as where y + 1 is y: beyond
max(s0, r0) / FALL, the unit roundoff of s must be at most FALL * r1.

A sample within atol + rtol * s that has not converged goes on, unless it has run away, and so
diverged: s > FAR * max(s0, r0) although r > FALL * r1.

A sample has diverged, too, once r > growth * max(s0, r0), but not within its first 2 n steps, with
n the number of entries that depend on each other: a nilpotent map grows for n steps on its way to
an exact end, and Broyden's method on a linear one for 2 n (D. M. Gay, Some Convergence Properties
of Broyden's Method, SIAM J. Numer. Anal. 1979).

A solver may ask for a least number of steps, as one that learns from its solves does. Until a
sample has made them it converges only where its residual is 0.

Linear equations b + K y are measured against |b| instead of s, and their growth is not judged: the
solution of a nearly singular one is as large as one likes.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from solvers.coupling import Coupling
from solvers.packing import StatePacking
from solvers.solution import Result
from solvers.types import Index, Mask, PerSample

if TYPE_CHECKING:
    from solvers.base import FixedPointSolver

FALL, FAR = 0.1, 1e4
# A residual that has grown so much beyond the first one, and the first f(y), has diverged:
# transient growth of a non-normal map that still converges stays far below.
DIVERGED_GROWTH = 1e6
# Stalls are checked for after this many steps, and then whenever half as many more have passed.
STALL_STEPS = 50
# A sample has stalled if its best residual is below STALL_SHARE of the first one and has improved
# by less than STALL_GAIN since the last check: rounding sets smaller records by chance, and linear
# convergence that has come so far sets larger ones. Or if the best one is below STALL_FLOOR of
# rms(f(y)) and has not improved at all. Larger residuals may still fall, as not every method is
# monotone. One above STALL_SPREAD times the best and STALL_SHARE of the first is no stall, but on
# its way to diverge.
STALL_SHARE, STALL_GAIN, STALL_FLOOR, STALL_SPREAD = 0.01, 0.1, 1e-5, 1e3
# The verdict of a sample that has none yet.
RUNNING = -1


class Past(NamedTuple):
    """What the rule remembers: norms of the residual and of f(y) at the start, and its limits.

    Attributes:
        peak: The largest residual so far; see `StopRule.peak`.
        limit: The largest residual of a sample that has not diverged.
    """

    first: PerSample
    start: PerSample
    peak: PerSample
    limit: PerSample


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """When a sample stops; `norm` and `scale` are those of its residual and of f(y).

    Args:
        rtol: Relative tolerance.
        atol: Absolute tolerance, in the units of a norm.
        roundoff: Unit roundoff of the state's dtype.
        growth: How far a residual may grow; infinite for linear equations.
        least: Steps that a sample makes before it may stop within a tolerance.
        keeps_last: The last point of a sample is reported, whatever its residual, not the best one.
    """

    rtol: float
    atol: float | Tensor
    roundoff: float
    growth: float
    least: int = 0
    keeps_last: bool = False

    @classmethod
    def of(
        cls, solver: "FixedPointSolver", packing: StatePacking, root: float | Tensor, linear: bool
    ) -> "StopRule":
        """The rule for a solver and a state; `root` is the root of the entries of a sample."""
        return cls(
            rtol=solver.rtol,
            atol=solver.atol * root,
            roundoff=max(torch.finfo(dtype).eps for dtype in packing.dtypes) / 2,
            growth=math.inf if linear or solver.linear else DIVERGED_GROWTH,
            least=getattr(solver, "min_steps", 0),
            keeps_last=getattr(solver, "keeps_last", False),
        )

    def within(self, max_steps: int) -> "StopRule":
        """The rule for a budget, after which no more steps can be asked for."""
        return self if self.least <= max_steps else replace(self, least=max_steps)

    def nearly(self, norm: PerSample, scale: PerSample) -> Mask:
        """Samples within the tolerance at this point. It is necessary for convergence."""
        return (norm <= self.rtol * scale + self.atol) & norm.isfinite()

    def truly(self, norm: PerSample, scale: PerSample, past: Past) -> Mask:
        """Samples whose residual is small in itself, and not only relative to a large f(y).

        It fell to a tenth of the first one, or is within the tolerance for the f(y) of the start;
        and it is not lost in the rounding of a large f(y).
        """
        fell = norm <= FALL * past.first
        resolved = self.roundoff * scale <= FALL * past.peak
        near = FALL * scale <= torch.maximum(past.first, past.start)
        would_do = norm <= self.rtol * past.start + self.atol
        return (fell & resolved) | (would_do & (near | resolved))

    def converged(self, norm: PerSample, scale: PerSample, past: Past) -> Mask:
        """Samples that have converged: `nearly` and `truly` hold."""
        return self.nearly(norm, scale) & self.truly(norm, scale, past)

    def far(self, scale: PerSample, past: Past) -> Mask:
        """Samples whose f(y) has become very large."""
        return scale > FAR * torch.maximum(past.first, past.start)

    def ran_away(self, norm: PerSample, scale: PerSample, past: Past) -> Mask:
        """Samples whose f(y) has become very large while the residual has not fallen."""
        if math.isinf(self.growth):
            return torch.zeros_like(norm, dtype=torch.bool)
        return self.far(scale, past) & (norm > FALL * past.peak)

    def peak(self, norm: PerSample, scale: PerSample, before: PerSample) -> PerSample:
        """The largest residual so far, capped by f(y) and counted if it is of that size.

        A residual larger than f(y) belongs to a large y and says nothing about residuals elsewhere;
        a much smaller one may be rounding.
        """
        found = torch.where(norm >= FALL * scale, torch.minimum(norm, scale), before)
        return torch.maximum(before, found)

    def past(self, first: PerSample, start: PerSample, peak: PerSample) -> Past:
        """Return the norms and the limit that follow from a start."""
        largest = torch.maximum(first, start)
        most = torch.finfo(largest.dtype).max
        limit = (self.growth * largest).nan_to_num(nan=most, posinf=most)
        return Past(first, start, peak, limit)


def stalled(
    norm: PerSample, scale: PerSample, best: PerSample, first: PerSample, mark: PerSample
) -> Mask:
    """Samples whose best residual no longer falls, and is small enough not to fall again.

    Args:
        norm: Norm of the residual at this point.
        scale: Norm of f(y) at this point.
        best: The smallest residual so far.
        first: The residual at the start.
        mark: The smallest residual at the last check.
    """
    flat = (best <= STALL_SHARE * first) & (best > (1 - STALL_GAIN) * mark)
    still = (best <= STALL_FLOOR * scale) & (best == mark)
    near = torch.maximum(STALL_SPREAD * best, STALL_SHARE * first)
    return (flat | still) & (norm <= near)


class Reading(NamedTuple):
    """What is measured at one point, before the rule is applied.

    Attributes:
        norm: Norm of the residual.
        scale: Norm of f(y), or of the right-hand side of a linear equation.
        trial: The samples for which the point is only a trial; None: no sample.
        step: Updates made before this point.
        look: Whether stalls are checked for.
    """

    norm: PerSample
    scale: PerSample
    trial: Mask | None
    step: int | Tensor
    look: bool | Tensor

    def of(self, samples: Index) -> "Reading":
        """The same for these samples only; `take_rows` takes twenty times as long."""
        norm, scale = (part.index_select(0, samples) for part in (self.norm, self.scale))
        trial = None if self.trial is None else self.trial.index_select(0, samples)
        return self._replace(norm=norm, scale=scale, trial=trial)


class Verdicts(NamedTuple):
    """What is known of every sample.

    Attributes:
        norm: The residual at the point that is reported.
        best: The smallest residual so far.
        mark: The smallest residual at the last check for stalls.
        result: The verdict, RUNNING until there is one.
        past: What the rule remembers.
    """

    norm: PerSample
    best: PerSample
    mark: PerSample
    result: Tensor
    past: Past


def judge(
    rule: StopRule, coupling: Coupling, known: Verdicts, now: Reading, entries: int
) -> tuple[Verdicts, Mask]:
    """Apply the rule sample by sample, without reading a value of a tensor into Python.

    Args:
        rule: The rule.
        coupling: Which samples may influence each other.
        known: What was known before.
        now: What was measured at this point.
        entries: Entries of a sample.

    Returns:
        What is known now, and a mask of the samples whose point is to be stored.
    """
    norm, scale, trial, past = now.norm, now.scale, now.trial, known.past
    settled, finite = coupling.settled(known.result), norm.isfinite()
    accepted = torch.ones_like(finite) if trial is None else ~trial
    peak = torch.where(finite & accepted, rule.peak(norm, scale, past.peak), past.peak)
    past = past._replace(peak=peak)
    converged = rule.converged(norm, scale, past)
    if rule.least:
        converged &= (norm == 0) | (now.step >= rule.least)
    gain, mark = (norm < known.best) | converged, known.mark
    if coupling.coupled:
        # A sample that had converged starts anew where coupled ones have moved it away.
        resumed = (known.result == int(Result.converged)) & ~converged & ~settled
        first = torch.where(resumed, torch.maximum(norm, past.first), past.first)
        start = torch.where(resumed, torch.maximum(scale, past.start), past.start)
        past, gain = rule.past(first, start, peak), gain | resumed
        # The best residual at the last check belongs to the point from which it was moved.
        mark = mark.masked_fill(resumed, math.inf)
    gain &= ~settled
    best = torch.where(gain, norm, known.best)
    still = (norm == 0) & ~converged  # all that the dtype can resolve
    if now.look is not False:
        still |= stalled(norm, scale, best, past.first, mark) & accepted & now.look
        mark = torch.where(now.look, best, mark) if isinstance(now.look, Tensor) else best
    still &= coupling.at_rest(still | converged | settled)
    grown = (norm > past.limit) & (now.step > coupling.patience(known.result, entries))
    far = rule.ran_away(norm, scale, past) & rule.nearly(norm, scale)
    code = torch.full_like(known.result, RUNNING)
    code = code.masked_fill(still, int(Result.stalled))
    code = code.masked_fill((grown | far) & accepted, int(Result.diverged))
    code = code.masked_fill(~finite & accepted, int(Result.nonfinite))
    code = code.masked_fill(converged, int(Result.converged))
    result = torch.where(settled, known.result, code)
    stored = (~settled & finite) if coupling.joint or rule.keeps_last else gain
    return Verdicts(torch.where(stored, norm, known.norm), best, mark, result, past), stored


def out_of_budget(rule: StopRule, known: Verdicts, now: Reading) -> Tensor:
    """The verdicts when no step follows: who still runs has used up the budget, or diverged."""
    running = known.result == RUNNING
    diverged = rule.ran_away(now.norm, now.scale, known.past) | (now.norm > known.past.limit)
    if now.trial is not None:
        diverged &= ~now.trial
    result = known.result.masked_fill(running, int(Result.max_steps))
    return result.masked_fill(diverged & running, int(Result.diverged))
