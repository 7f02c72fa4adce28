"""Compaction: finished rows leave the batch, and return in the solution."""

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from solvers.trees import take_rows
from solvers.types import Index
from solvers.verdicts import Past

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
    packing, alive = status.packing, status.result < 0
    if (doubtful := status.doubtful()) is not None:  # the last call of `f` is for them
        alive |= doubtful
    if status.coupling.joint:
        alive = alive.view(-1, packing.samples_per_row).any(1)
    rows = alive.nonzero().flatten()
    fewest = FEW_ROWS if status.value.numel() // len(alive) in ENTRIES else 0
    if len(rows) < fewest:
        padding = (~alive).nonzero().flatten()[: fewest - len(rows)]
        rows = alive.index_fill_(0, padding, True).nonzero().flatten()
    if len(rows) > (1 - COMPACT_SHARE) * len(alive):
        return None
    gone = packing.sample_index((~alive).nonzero().flatten())
    kept = packing.sample_index(rows)
    if status.mixes_steps:  # samples that stay are judged at the next step anyway
        status.measure(evaluate(status.value), gone)
    status.count_steps()
    left = tuple(getattr(status, name).index_select(0, gone) for name in REPORTED)
    status.removed.append(left)  # type: ignore[arg-type]
    for name in COLUMNS:
        setattr(status, name, getattr(status, name).index_select(0, kept))
    status.past = Past(*(part.index_select(0, kept) for part in status.past))
    status.latest = take_rows(status.latest, kept)
    status.borrowed = False
    status.set_stopped(status.result >= 0)
    return rows, kept


def in_order(parts: list[Columns]) -> tuple[Tensor, ...]:
    """Join the columns of all samples, in the order of their index, and drop the index."""
    index, *columns = map(torch.cat, zip(*parts, strict=True))
    order = index.argsort()
    return tuple(column.index_select(0, order) for column in columns)
