"""Fast paths of the status: steps at which nothing unusual happens, in few operations.

They give the verdicts of the rule in `solvers.verdicts`, applied sample by sample; a property
test compares them with it.
"""

import math
from typing import TYPE_CHECKING

import torch

from solvers.solution import Result
from solvers.types import Flat, Mask, PerSample

if TYPE_CHECKING:
    from solvers.status import SampleStatus


def usual_step(status: "SampleStatus", y: Flat, fy: Flat, step: int, trial: Mask | None) -> bool:
    """Update the status if samples only set records, set none, or converge.

    Returns:
        Whether this was such a step. If not, nothing was changed, and the rule has to be applied.
    """
    norm = torch.linalg.vector_norm(fy - y, dim=1)
    scale = status.start if status.given_scale else torch.linalg.vector_norm(fy, dim=1)
    status.latest = norm, scale, trial
    routine = len(norm) == 1 and norm.is_cpu and _alone(status, norm, scale, step)
    routine = routine or _even(status, norm, scale, step)
    routine = routine or (step > 0 and _uneven(status, norm, scale, trial))
    if routine and step >= status.next_look:
        status.stop(status.look(norm, scale, step, trial), Result.stalled)
    return routine


def _alone(status: "SampleStatus", norm: PerSample, scale: PerSample, step: int) -> bool:
    """One sample sets a record. Reading a few numbers is faster than comparing tensors."""
    residual, limit = float(norm), status.atol + status.rtol * float(scale)
    converged = residual <= limit
    if not status.smallest < residual < min(float(status.best), status.largest):
        return False
    if converged and (step == 0 or limit == math.inf or not status.truly(norm, scale).item()):
        return False
    _all_improved(status, norm, scale, step)
    if converged:
        status.result.fill_(int(Result.converged))
        status.num_steps.add_(status.pending_steps)
        status.num_running = 0
    return True


def _even(status: "SampleStatus", norm: PerSample, scale: PerSample, step: int) -> bool:
    """All samples run, and all set a record without converging."""
    if status.stopped is not None:
        return False
    limit = torch.add(status.floor, scale, alpha=status.rtol)
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
    limit = torch.add(status.atol_tensor, scale, alpha=status.rtol)
    stopped, running = status.stopped, norm
    if stopped is not None:
        if not status.independent:
            holds = (norm <= limit) & status.truly(norm, scale)
            if not bool(holds.logical_or_(~stopped).all()):
                return False
        running = norm.masked_fill(stopped, math.inf)
    converged = running <= limit
    gain = (running < status.best).logical_or_(converged)
    # Stopped samples have not moved, or are moved by coupled ones and then recorded again.
    fine = gain if stopped is None else gain | stopped
    due = gain if status.independent else fine
    all_fine, some_converged = bool(fine.all()), bool(converged.any())
    in_range = float(running.amin()) > status.smallest
    if some_converged:
        in_range = in_range and float(limit.amax()) < math.inf and not status.joint
        in_range = in_range and bool((status.truly(norm, scale) >= converged).all())
    if not all_fine and in_range:
        in_range = bool((running <= status.limit).logical_or_(fine).all())
    if not in_range:
        return False
    if not all_fine:
        peak = status.rule.peak(norm, scale, status.peak)
        status.peak = peak if trial is None else torch.where(trial, status.peak, peak)
    everyone = all_fine and (stopped is None or not status.independent)
    status.norm = status.best = norm if everyone else torch.where(due, norm, status.best)
    status.improved = None if all_fine else fine
    if status.joint:  # the last joint point, as in `_judge_each`
        status.norm, status.improved = norm, None
    status.mixes_steps = status.coupled and status.improved is not None
    if some_converged:
        status.result.masked_fill_(converged, int(Result.converged))
        status.num_steps.add_(converged, alpha=status.pending_steps)
        status.set_stopped(converged if stopped is None else stopped | converged)
    return True
