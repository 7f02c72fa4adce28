"""What happens to samples that have stopped.

Those of an independent batch leave it, and return in the solution. Some verdicts hang on a last
value of the map. Coupled samples whose best points stem from different steps are measured anew, as
one point. And a claim of convergence may be in doubt:

A residual that was larger than the first one on the way may have been so elsewhere only, as that of
|y| + 1 is at negative y. So a sample that has converged where s > FAR * max(s0, r0), and rounding
would hide a residual of r0, must show that y can be told from the points beside it: its entries are
changed by +-NUDGE in turn, and the residual there must be above NOISE unit roundoffs of f.
Otherwise it has diverged. (s, s0 and r0 are as in `solvers.verdicts`.)
"""

import math
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from solvers.coupling import Coupling
from solvers.solution import Result
from solvers.trees import take_rows
from solvers.types import Flat, Index, Mask, Memory, PerSample, Watch
from solvers.verdicts import FALL, Past, Reading, StopRule, Verdicts

if TYPE_CHECKING:
    from solvers.counted_map import CountedMap
    from solvers.status import SampleStatus

# Samples are dropped from the batch once this share of it has stopped: copying what is left
# costs about as much as one update, so small gains are not worth it.
COMPACT_SHARE = 0.25
# A matrix product of one or two rows is rounded worse than one of four and takes as long, and a
# slow sample near its limit pays for that in steps: states of so many entries keep finished rows.
FEW_ROWS, ENTRIES = 4, range(64, 1025)
# What is reported of each sample, and what else is held of those in the batch.
REPORTED = ("index", "value", "norm", "result", "num_steps")
COLUMNS = (*REPORTED, "best", "mark", "rested")
NUDGE, NOISE = 2.0**-10, 10.0

# Those of `REPORTED`.
Columns: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def remove(status: "SampleStatus", evaluate: "CountedMap") -> tuple[Index, Index] | None:
    """Remove stopped rows from the batch if they make up COMPACT_SHARE of it.

    Returns:
        The rows of the first batch dim, and of the matrix, that stay; None if all do.
    """
    most = (1 - COMPACT_SHARE) * len(status.result)
    if not status.may_compact or (status.num_running > most and not status.coupling.joint):
        return None
    status.may_compact = False
    packing, (alive, count) = status.packing, status.alive()
    if status.value.numel() // len(alive) in ENTRIES:
        count = max(count, FEW_ROWS)
    if count > (1 - COMPACT_SHARE) * len(alive):
        return None
    order = alive.to(torch.int8).argsort(descending=True, stable=True)
    rows, gone = order[:count].sort().values, packing.sample_index(order[count:])
    kept = packing.sample_index(rows)
    if status.mixes_steps:  # samples that stay are judged at the next step anyway
        measure(status, evaluate(status.value), gone)
    status.count_steps()
    left = tuple(getattr(status, name).index_select(0, gone) for name in REPORTED)
    status.removed.append(left)  # type: ignore[arg-type]
    for name in status.columns:
        setattr(status, name, getattr(status, name).index_select(0, kept))
    status.past = Past(*(part.index_select(0, kept) for part in status.past))
    status.latest = None if status.latest is None else status.latest.of(kept)
    status.borrowed = False
    status.set_stopped(status.result >= 0)
    return rows, kept


def in_order(parts: list[Columns]) -> tuple[Tensor, ...]:
    """Join the columns of all samples, in the order of their index, and drop the index."""
    index, *columns = map(torch.cat, zip(*parts, strict=True))
    order = index.argsort()
    return tuple(column.index_select(0, order) for column in columns)


def remember(memory: Memory, carry: Any, stopped: Mask) -> None:
    """Add what a solver remembers of those stopped samples that `memory` does not have yet."""
    for samples, _ in memory:
        stopped[samples] = False
    samples = stopped.nonzero().flatten()
    if len(samples):
        memory.append((samples, take_rows(carry, samples)))


def last_points(
    status: "SampleStatus", evaluate: "CountedMap", watch: Watch | None
) -> Generator[Flat, Flat | None, None]:
    """Yield the points on whose values verdicts still hang after the last step; take the values."""
    status.refresh()
    if status.mixes_steps:
        y = status.value
        fy = yield y
        assert fy is not None
        measure(status, fy)
        status.refresh(again=True)
        if watch is not None:
            watch(evaluate, status, y, fy)
    samples = status.in_doubt()
    if samples is not None:
        near = beside(status.value, samples, status.coupling, status.rule.roundoff)
        y = evaluate.packing.round(near)
        fy = yield y
        assert fy is not None
        status.known = confirmed(status.rule, status.known, samples, status.read(y, fy))


def measure(status: "SampleStatus", fy: Flat, samples: Index | None = None) -> None:
    """Set residuals and verdicts of some samples (None: all) from `fy` = f(value)."""
    found = measured(status.rule, status.known, status.read(status.value, fy))
    norm, result = found.norm, found.result
    if samples is not None:
        norm = status.norm.index_copy(0, samples, norm[samples])
        result = status.result.index_copy(0, samples, result[samples])
    status.norm, status.result = norm, result


def beside(y: Flat, samples: Mask, coupling: Coupling, roundoff: float) -> Flat:
    """Points near those of these samples, in another direction than towards 0 or away from it.

    Entries, tokens and coupled samples move up and down in turn, whatever the other samples.
    """
    rows, entries = (torch.arange(n, device=y.device) for n in y.shape)
    turn = rows % (coupling.per_row if coupling.independent else y.shape[0])
    signs = 1 - 2 * ((turn[:, None] + entries) % 2).to(y)
    nudge = max(NUDGE, 16 * roundoff)
    return torch.where(samples[:, None], (1 + nudge * signs) * y, y)


def measured(rule: StopRule, known: Verdicts, now: Reading) -> Verdicts:
    """The residuals and verdicts of points that were measured once more, as one point."""
    converged = rule.converged(now.norm, now.scale, known.past)
    result = known.result.masked_fill(known.result == int(Result.converged), int(Result.max_steps))
    return known._replace(
        norm=now.norm.nan_to_num(nan=math.inf, posinf=math.inf),
        result=result.masked_fill(converged, int(Result.converged)),
    )


def doubtful(rule: StopRule, known: Verdicts, size: PerSample) -> Mask:
    """Samples that have converged at a point of norm `size`, so far away that it is in doubt."""
    hidden = rule.roundoff * size > FALL * known.past.first
    return (known.result == int(Result.converged)) & rule.far(size, known.past) & hidden


def confirmed(rule: StopRule, known: Verdicts, samples: Mask, now: Reading) -> Verdicts:
    """Let samples that cannot be told from the points beside them have diverged."""
    lost = samples & ~(now.norm > NOISE * rule.roundoff * now.scale)
    return known._replace(result=known.result.masked_fill(lost, int(Result.diverged)))
