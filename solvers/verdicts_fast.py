"""Fast paths of the status: steps at which nothing unusual happens, in few operations.

They give the verdicts of the rule in `solvers.verdicts`, applied sample by sample; a property
test compares them with it.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from solvers.norms import SAFE_NORMS
from solvers.solution import Result
from solvers.types import Flat, Mask, PerSample
from solvers.verdicts import Reading, StopRule, stalled

if TYPE_CHECKING:
    from solvers.status import SampleStatus


class Thresholds(NamedTuple):
    """Bounds for the norms of a usual step; `floor` is the smallest norm that it may handle."""

    smallest: float
    largest: float
    atol: Tensor
    floor: Tensor

    @classmethod
    def of(cls, rule: StopRule, y: Flat) -> "Thresholds":
        """Return the thresholds for states of the dtype and device of `y`."""
        smallest, largest = SAFE_NORMS[y.dtype]
        atol = torch.full((), float(rule.atol), dtype=y.dtype, device=y.device)
        return cls(smallest, largest, atol, atol.clamp(min=smallest))


def usual_step(status: "SampleStatus", y: Flat, fy: Flat, step: int, trial: Mask | None) -> bool:
    """Update the status if samples only set records, set none, or converge.

    Returns:
        Whether this was such a step. If not, nothing was changed, and the rule has to be applied.
    """
    norm = torch.linalg.vector_norm(fy - y, dim=1)
    scale = status.past.start if status.given_scale else torch.linalg.vector_norm(fy, dim=1)
    status.latest = Reading(norm, scale, trial, step, look=step >= status.next_look)
    routine = len(norm) == 1 and norm.is_cpu and _alone(status, norm, scale, step)
    routine = routine or _even(status, norm, scale, step)
    routine = routine or (step > 0 and _uneven(status, norm, scale, trial))
    if routine and step >= status.next_look:
        status.stop(_look(status, status.latest), Result.stalled)
    return routine


def _look(status: "SampleStatus", now: Reading) -> Mask:
    """Samples that have stalled, at one of the steps at which stalls are checked for."""
    found = stalled(now.norm, now.scale, status.best, status.past.first, status.mark)
    status.mark, status.next_look = status.best, int(now.step + now.step // 2)
    return found if now.trial is None else found & ~now.trial


def _alone(status: "SampleStatus", norm: PerSample, scale: PerSample, step: int) -> bool:
    """One sample sets a record. Reading a few numbers is faster than comparing tensors."""
    residual, limit = float(norm), status.rule.atol + status.rule.rtol * float(scale)
    converged = residual <= limit
    if (
        not status.thresholds.smallest
        < residual
        < min(float(status.best), status.thresholds.largest)
    ):
        return False
    if converged and (
        step == 0 or limit == math.inf or not status.rule.truly(norm, scale, status.past).item()
    ):
        return False
    _all_improved(status, norm, scale, step)
    if converged:
        status.result.fill_(int(Result.converged))
        status.num_running = 0
    return True


def _even(status: "SampleStatus", norm: PerSample, scale: PerSample, step: int) -> bool:
    """All samples run, and all set a record without converging."""
    if status.stopped is not None:
        return False
    limit = torch.add(status.thresholds.floor, scale, alpha=status.rule.rtol)
    # False for NaN, and for norms that have left the range of the dtype.
    if not bool((norm > limit).logical_and_(norm < status.best).all()):
        return False
    _all_improved(status, norm, scale, step)
    return True


def _all_improved(status: "SampleStatus", norm: PerSample, scale: PerSample, step: int) -> None:
    if step == 0:
        status.begin(norm, scale)
        status.routine = True
    status.norm = status.best = norm
    status.mixes_steps, status.improved = False, None


def _uneven(status: "SampleStatus", norm: PerSample, scale: PerSample, trial: Mask | None) -> bool:
    """Some samples set no record or converge; none resumes, diverges or leaves the range."""
    limit = torch.add(status.thresholds.atol, scale, alpha=status.rule.rtol)
    stopped, running = status.stopped, norm
    if stopped is not None:
        if not status.coupling.independent:
            holds = (norm <= limit) & status.rule.truly(norm, scale, status.past)
            if not bool(holds.logical_or_(~stopped).all()):
                return False
        running = norm.masked_fill(stopped, math.inf)
    converged = running <= limit
    gain = (running < status.best).logical_or_(converged)
    # Stopped samples have not moved, or are moved by coupled ones and then recorded again.
    fine = gain if stopped is None else gain | stopped
    due = gain if status.coupling.independent else fine
    all_fine, some_converged = bool(fine.all()), bool(converged.any())
    in_range = float(running.amin()) > status.thresholds.smallest
    if some_converged:
        in_range = in_range and float(limit.amax()) < math.inf and not status.coupling.joint
        in_range = in_range and bool(
            (status.rule.truly(norm, scale, status.past) >= converged).all()
        )
    if not all_fine and in_range:
        in_range = bool((running <= status.past.limit).logical_or_(fine).all())
    if not in_range:
        return False
    if not all_fine:
        peak = status.rule.peak(norm, scale, status.past.peak)
        peak = peak if trial is None else torch.where(trial, status.past.peak, peak)
        status.past = status.past._replace(peak=peak)
    everyone = all_fine and (stopped is None or not status.coupling.independent)
    status.norm = status.best = norm if everyone else torch.where(due, norm, status.best)
    status.improved = None if all_fine else fine
    if status.coupling.joint:  # the last joint point, as in `_judge`
        status.norm, status.improved = norm, None
    status.mixes_steps = status.coupling.coupled and status.improved is not None
    if some_converged:
        status.result.masked_fill_(converged, int(Result.converged))
        status.set_stopped(converged if stopped is None else stopped | converged)
    return True
