"""Fast paths of the ledger: the steps at which nothing unusual happens, in few operations.

They come to the verdicts of the rule in `solvers.verdicts`, applied sample by sample; a property
test holds them to it.
"""

import math
from typing import TYPE_CHECKING

import torch

from solvers.solution import Result
from solvers.types import Flat, Mask, PerSample

if TYPE_CHECKING:
    from solvers.ledger import Ledger


def usual_step(ledger: "Ledger", y: Flat, fy: Flat, step: int, trial: Mask | None) -> bool:
    """The usual steps, in few operations: samples set a record or not, and some converge.

    Returns:
        Whether this was one. Everything else is left to the rule itself, with nothing changed.
    """
    norm = torch.linalg.vector_norm(fy - y, dim=1)
    scale = ledger.start if ledger.given_scale else torch.linalg.vector_norm(fy, dim=1)
    ledger.latest = norm, scale, trial
    routine = len(norm) == 1 and norm.is_cpu and _alone(ledger, norm, scale, step)
    routine = routine or _even(ledger, norm, scale, step)
    routine = routine or (step > 0 and _uneven(ledger, norm, scale))
    if routine and step >= ledger.next_look:
        ledger.stop(ledger.look(norm, scale, step, trial), Result.stalled)
    return routine


def _alone(ledger: "Ledger", norm: PerSample, scale: PerSample, step: int) -> bool:
    """A single sample sets a record; a few numbers are read faster than compared as tensors."""
    residual, limit = float(norm), ledger.atol + ledger.rtol * float(scale)
    converged = residual <= limit
    if not ledger.smallest < residual < min(float(ledger.best), ledger.largest):
        return False
    if converged and (step == 0 or limit == math.inf or not ledger.truly(norm, scale).item()):
        return False
    _all_improved(ledger, norm, scale, step)
    if converged:
        ledger.result.fill_(int(Result.converged))
        ledger.num_steps.add_(ledger.pending_steps)
        ledger.num_running = 0
    return True


def _even(ledger: "Ledger", norm: PerSample, scale: PerSample, step: int) -> bool:
    """All run, and all set a record without converging."""
    if ledger.stopped is not None:
        return False
    limit = torch.add(ledger.floor, scale, alpha=ledger.rtol)
    # False for NaN, and for norms that have left the range of the dtype.
    if not bool((norm > limit).logical_and_(norm < ledger.best).all()):
        return False
    _all_improved(ledger, norm, scale, step)
    return True


def _all_improved(ledger: "Ledger", norm: PerSample, scale: PerSample, step: int) -> None:
    if step == 0:
        ledger.begin(norm, scale)
        ledger.routine = True
    ledger.norm = ledger.best = norm
    ledger.mixes_steps, ledger.improved = False, None


def _uneven(ledger: "Ledger", norm: PerSample, scale: PerSample) -> bool:
    """Some set no record or converge, but nobody resumes, diverges or leaves the range."""
    limit = torch.add(ledger.atol_tensor, scale, alpha=ledger.rtol)
    stopped, running = ledger.stopped, norm
    if stopped is not None:
        if not ledger.independent:
            holds = (norm <= limit) & ledger.truly(norm, scale)
            if not bool(holds.logical_or_(~stopped).all()):
                return False
        running = norm.masked_fill(stopped, math.inf)
    converged = running <= limit
    gain = (running < ledger.best).logical_or_(converged)
    # Those who have stopped are where they were, or are moved by the others and due anew.
    fine = gain if stopped is None else gain | stopped
    due = gain if ledger.independent else fine
    all_fine, some_converged = bool(fine.all()), bool(converged.any())
    in_range = float(running.amin()) > ledger.smallest
    if some_converged:
        in_range = in_range and float(limit.amax()) < math.inf and not ledger.joint
        in_range = in_range and bool((ledger.truly(norm, scale) >= converged).all())
    if not all_fine and in_range:
        in_range = bool((running <= ledger.limit).logical_or_(fine).all())
    if not in_range:
        return False
    if not all_fine:
        ledger.peak = ledger.rule.peak(norm, scale, ledger.peak)
    everyone = all_fine and (stopped is None or not ledger.independent)
    ledger.norm = ledger.best = norm if everyone else torch.where(due, norm, ledger.best)
    ledger.improved = None if all_fine else fine
    if ledger.joint:  # the last joint point, as in `_judge_each`
        ledger.norm, ledger.improved = norm, None
    ledger.mixes_steps = ledger.coupled and ledger.improved is not None
    if some_converged:
        ledger.result.masked_fill_(converged, int(Result.converged))
        ledger.num_steps.add_(converged, alpha=ledger.pending_steps)
        ledger.set_stopped(converged if stopped is None else stopped | converged)
    return True
