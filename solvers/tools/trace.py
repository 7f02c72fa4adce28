"""Record a solve: the residual of every sample at every evaluation, and the time."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.base import FixedPointSolver
from solvers.counted_map import CountedMap
from solvers.norms import row_norms
from solvers.packing import StatePacking
from solvers.registry import SOLVERS
from solvers.solution import Solution
from solvers.status import SampleStatus
from solvers.torch_internals import pytree
from solvers.types import Flat, Map, PerSample, State
from solvers.verdicts import RUNNING

# A residual has reached a noise floor if it has fallen below FLOOR_SHARE of its first value, and
# if, once within FLOOR_FACTOR of its minimum, it set a record in less than RECORD_SHARE of steps.
FLOOR_SHARE, FLOOR_FACTOR, RECORD_SHARE = 0.01, 3.0, 0.5


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What happened in one solve, evaluation by evaluation.

    Attributes:
        residual: Shape `(evaluations, *batch)`. Root mean square of f(y) - y over the sample's
            entries, at the y of that evaluation.
        active: Shape `(evaluations, *batch)`, bool. Whether the sample had no verdict yet. A
            stopped one is evaluated at the point that it returns, as long as others run.
        num_evals: Shape `(evaluations,)`, int64. Calls of `f` so far, those for derivatives
            included.
        seconds: Shape `(evaluations,)`, float64 on the CPU. Time from the start of the solve
            to the verdicts on each point, less what the tracing itself took.
        states: The y of every evaluation; empty unless `keep_states`.
        solution: What the solve returned.
    """

    residual: Tensor
    active: Tensor
    num_evals: Tensor
    seconds: Tensor
    states: tuple[State, ...]
    solution: Solution

    @property
    def contraction_rate(self) -> PerSample:
        """Shape `(*batch,)`: `contraction_rate` of each sample while it was active."""
        return contraction_rate(self.residual.masked_fill(~self.active, math.nan))


@torch.no_grad()
def trace(
    f: Map,
    y0: State,
    *args: Any,
    solver: str | FixedPointSolver = "anderson",
    max_steps: int = 50,
    batch_dims: int = 1,
    keep_states: bool = False,
) -> Trace:
    """Run `solve` and record every evaluation; a failed sample raises no error.

    The solve is the ordinary one, except that stopped samples stay in the batch (no
    compaction), so that every evaluation has a residual for every sample: `num_steps` and
    verdicts are the same, while the wall time is that of the slowest sample for all. On an
    accelerator every evaluation waits for the device. A row is a point that was judged; calls for
    a derivative, or within a step, show in `num_evals` only.

    Args:
        f: See `solve`.
        y0: See `solve`.
        *args: See `solve`.
        solver: See `solve`.
        max_steps: See `solve`.
        batch_dims: See `solve`.
        keep_states: Keep a copy of every evaluated state, on the state's device.

    Returns:
        A `Trace`.

    Raises:
        ValueError: As `solve`; or the solver calls `f` on a part of the batch.
        TypeError: As `solve`.

    Example:
        >>> seen = trace(lambda y: 0.5 * y + 1, torch.zeros(1, 1), solver="picard")
        >>> [round(value, 3) for value in seen.residual[:4, 0].tolist()]
        [1.0, 0.5, 0.25, 0.125]
        >>> round(seen.contraction_rate.item(), 3)
        0.5
    """
    chosen = SOLVERS.resolve(solver)
    notes = _Notes(StatePacking(y0, batch_dims), keep_states)
    solution = chosen.iterate(
        f, y0, args, max_steps=max_steps, batch_dims=batch_dims, compact=False, watch=notes.take
    )
    packing = notes.packing
    empty = torch.empty(0, *packing.batch_shape, dtype=packing.dtype, device=packing.device)
    return Trace(
        residual=torch.stack(notes.residuals) if notes.residuals else empty,
        active=torch.stack(notes.active[:-1]) if notes.residuals else empty.bool(),
        num_evals=torch.tensor(notes.counts, dtype=torch.int64),
        seconds=torch.tensor(notes.seconds, dtype=torch.float64),
        states=tuple(notes.states),
        solution=solution,
    )


@torch.no_grad()
def contraction_rate(residuals: Tensor) -> Tensor:
    """The factor by which residuals shrink per row in the long run, per sample.

        log r_t ~ a + t log(rate)    by least squares, over the last half of the usable rows

    Usable are positive, finite residuals before the noise floor. The floor begins where a
    residual, having fallen a hundredfold, is within a factor of 3 of its minimum and from
    there on sets fewer than one record in two steps. Without a floor all are usable: a rate
    of 1 is no progress, and one above 1 divergence. For undamped Picard near a solution it
    is the spectral radius of df/dy; other solvers have rates of their own.

    Args:
        residuals: Shape `(num_evals, *batch)`, such as `Trace.residual`; NaN entries are
            skipped and keep their place in time.

    Returns:
        Shape `(*batch,)`. NaN where fewer than two residuals are usable, as after a solve in
        one step.

    Raises:
        ValueError: `residuals` has no dim.

    Example:
        >>> round(contraction_rate(0.9 ** torch.arange(20.0)).item(), 4)
        0.9
    """
    if residuals.ndim == 0:
        raise ValueError("`residuals` must have shape (num_evals, *batch), got a scalar.")
    rows = residuals.reshape(len(residuals), math.prod(residuals.shape[1:])).double()
    usable = rows.isfinite() & (rows > 0)
    usable &= ~_floor(rows.masked_fill(~usable, math.inf))
    # The last half of the usable residuals, and at least two.
    rank = usable.flip(0).cumsum(0).flip(0)
    usable &= rank <= ((usable.sum(0) + 1) // 2).clamp(min=2)
    time = torch.arange(len(rows), device=rows.device, dtype=rows.dtype)[:, None].expand_as(rows)
    log = rows.masked_fill(~usable, 1).log()
    time, log = ((part - _mean(part, usable)).masked_fill(~usable, 0) for part in (time, log))
    # Fewer than two usable residuals give 0 / 0.
    slope = (time * log).sum(0) / time.square().sum(0)
    return slope.exp().view(residuals.shape[1:]).to(residuals.dtype)


def _mean(rows: Tensor, usable: Tensor) -> Tensor:
    return rows.masked_fill(~usable, 0).sum(0) / usable.sum(0)


def _floor(rows: Tensor) -> Tensor:
    """Mask of the residuals on the noise floor; `rows` holds inf where not usable."""
    if not rows.numel():
        return torch.zeros_like(rows, dtype=torch.bool)
    lowest = rows.cummin(0).values
    near = lowest <= FLOOR_FACTOR * lowest[-1]
    later = torch.zeros_like(near)
    later[1:] = near[:-1] & rows[1:].isfinite()
    record = torch.zeros_like(near)
    record[1:] = rows[1:] < lowest[:-1]
    first = rows.gather(0, rows.isfinite().byte().argmax(0, keepdim=True))
    fallen = lowest[-1] <= FLOOR_SHARE * first[0]
    rare = (later & record).sum(0) < RECORD_SHARE * later.sum(0)
    return near & fallen & rare


class _Notes:
    """The record of all points so far."""

    def __init__(self, packing: StatePacking, keep_states: bool):
        self.packing, self.keep_states = packing, keep_states
        shape = packing.batch_shape
        self.active = [torch.ones(shape, dtype=torch.bool, device=packing.device)]
        self.residuals: list[Tensor] = []
        self.map: CountedMap | None = None
        self.counts: list[int] = []
        self.seconds: list[float] = []
        self.states: list[State] = []
        self.start = time.perf_counter()

    def take(self, evaluate: CountedMap, status: SampleStatus, y: Flat, fy: Flat) -> None:
        """Record a point after it was judged; the time that this takes is not counted."""
        packing, noted_from = self.packing, self._now()
        if len(y) != packing.num_samples:
            raise ValueError(
                f"This solver calls `f` on {len(y)} of {packing.num_samples} samples at a time, "
                "so that no row of the trace covers all samples. Trace a batch of one sample."
            )
        self.seconds.append(noted_from - self.start)
        if evaluate is not self.map:  # `robust` makes several solves
            self.map, self.before = evaluate, self.counts[-1] if self.counts else 0
        self.counts.append(self.before + evaluate.num_evals)
        self.residuals.append((row_norms(fy - y) / status.root).view(packing.batch_shape))
        self.active.append((status.result == RUNNING).view(packing.batch_shape))
        if self.keep_states:
            self.states.append(pytree.tree_map(torch.clone, packing.unpack(y)))
        self.start += self._now() - noted_from

    def _now(self) -> float:
        if self.packing.device.type != "cpu":
            torch.accelerator.synchronize(self.packing.device)
        return time.perf_counter()
