"""Safeguarded Anderson acceleration: a point is kept only if its residual is small enough."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from solvers.base import FixedPointSolver
from solvers.checks import check_at_least_0, check_damping, check_history
from solvers.methods.window import History
from solvers.promises import Promises
from solvers.types import Flat, Index, Mask, PerSample

if TYPE_CHECKING:
    from solvers.methods.static import StaticHistory


class Guarded(NamedTuple):
    """The window, which of its slots are in use, the best point, and failures in a row."""

    window: "History | StaticHistory"
    valid: Tensor
    y: Flat
    fy: Flat
    norm: PerSample
    failures: PerSample


@final
@dataclass(frozen=True, kw_only=True)
class AndersonSafe(FixedPointSolver):
    """Anderson acceleration (type II) whose residual may not rise beyond a bound.

    The step of `anderson` is taken from the best point so far, y_b, and tried. If

        |g(y)| <= growth * |g(y_b)|,    g(y) = f(y) - y,

    y becomes y_b. If not, its differences stay in the window and the next extrapolation
    starts from y_b again; after `patience` failures in a row the window is
    emptied and the (damped) Picard step from y_b is accepted whatever its residual, so that
    the iteration never stands still. The window is also emptied where its small matrix is
    too ill-conditioned. For strongly nonlinear or noisy maps, on which the residuals of plain
    Anderson jump up and down. On easy maps it needs as many evaluations as `anderson`, on some
    a few more. Cost per step: one call of `f`, O(history * n) arithmetic, 2 * history states of
    memory.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        history: Differences kept, at least 1.
        damping: Weight kept on the old iterate, in [0, 1). 0 is undamped.
        ridge: Tikhonov term relative to each difference's own size, at least 0.
        growth: Largest ratio of a new residual to the best one, at least 1. 1 is monotone.
        patience: Failures in a row before the window is emptied, at least 1.
        largest_condition: Condition of the small matrix (its largest over its smallest pivot) at
            which the window is emptied, at least 1.

    Raises:
        ValueError: An option is out of its range.

    References:
        H. F. Walker, P. Ni, Anderson Acceleration for Fixed-Point Iterations, SIAM J. Numer.
        Anal. 2011, sec. 4 (conditioning). J. Zhang, B. O'Donoghue, S. Boyd, Globally
        Convergent Type-I Anderson Acceleration, SIAM J. Optim. 2020, sec. 3 (safeguarding and
        restarts). Keeping the differences of a rejected point is ours.

    Example:
        >>> import solvers
        >>> s = solvers.solve(torch.cos, torch.zeros(1, 1), solver=AndersonSafe(rtol=1e-6))
        >>> s.converged.all().item(), s.num_evals < 8
        (True, True)
    """

    promises: ClassVar[Promises] = Promises(radius=math.inf)

    history: int = 8
    damping: float = 0.0
    ridge: float = 1e-8
    growth: float = 1.0
    patience: int = 3
    largest_condition: float = 1e12

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping)
        check_history(self.history)
        check_at_least_0("ridge", self.ridge)
        for name, least in (("growth", 1), ("patience", 1), ("largest_condition", 1)):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and value >= least):
                raise ValueError(f"`{name}` must be at least {least}, got {value!r}.")

    def init(self, y: Flat) -> Guarded:
        """An empty window, and a best point that any first point replaces."""
        return self._start(y, History.empty(y, self.history))

    def init_static(self, y: Flat) -> Guarded:
        """The same with a window of fixed size."""
        from solvers.methods.static import StaticHistory  # most programs never need it

        return self._start(y, StaticHistory.empty(y, self.history))

    def _start(self, y: Flat, window: "History | StaticHistory") -> Guarded:
        ones = y.new_ones(y.shape[0], requires_grad=False)
        valid = torch.zeros(y.shape[0], self.history, dtype=torch.bool, device=y.device)
        return Guarded(window, valid, y, y, ones * torch.inf, torch.zeros_like(ones))

    def keep(self, carry: Guarded, samples: Index) -> Guarded:
        """Drop all but these samples."""
        rest = [part.index_select(0, samples) for part in carry[1:]]
        assert isinstance(carry.window, History)  # nothing leaves a batch within a graph
        return Guarded(carry.window.keep(samples), *rest)

    def step(self, y: Flat, fy: Flat, carry: Guarded) -> tuple[Flat, Guarded]:
        """Accept or reject y, and extrapolate from the best point."""
        g = fy - y
        norm = torch.linalg.vector_norm(g, dim=1)
        spent = carry.failures > self.patience
        accepted = (norm <= self.growth * carry.norm) | spent
        failures = torch.where(accepted, 0.0, carry.failures + 1)
        best = Guarded(
            carry.window,
            carry.valid,
            torch.where(accepted[:, None], y, carry.y),
            torch.where(accepted[:, None], fy, carry.fy),
            torch.where(accepted, norm, carry.norm),
            failures,
        )
        window, valid = self._learn(g, fy, best)
        weights, ill = self._weights(window, valid, best)
        valid = valid & ~((failures > self.patience) | ill)[:, None]
        weights = weights * valid[:, : window.filled]
        return self._propose(window, weights, best), best._replace(
            window=window.moved(g, fy), valid=valid
        )

    def _learn(self, g: Flat, fy: Flat, best: Guarded) -> tuple["History | StaticHistory", Tensor]:
        """Add the newest differences, of consecutive points whether accepted or not."""
        window = best.window
        if window.point is None:
            return window, best.valid
        valid = best.valid | window.newest
        window, newest = window.push(g, fy)
        (column,) = window.products(window.left, newest)
        return window.with_gram(column, column, self.ridge), valid

    def _weights(
        self, window: "History | StaticHistory", valid: Tensor, best: Guarded
    ) -> tuple[Tensor, Mask]:
        """Solve least squares over the valid slots; also mark ill-conditioned samples."""
        count = window.filled
        mask = valid[:, :count]
        if count == 0:
            return best.y.new_zeros(len(best.y), 0), mask.any(1)
        (rhs,) = window.products(window.left, best.fy - best.y)
        gram = window.gram[:, :count, :count]
        root = gram.diagonal(dim1=1, dim2=2).abs().sqrt()
        scaled = gram / (root[:, :, None] * root[:, None, :])
        both = mask[:, :, None] & mask[:, None, :]
        scaled = torch.where(both, scaled, torch.eye(count, device=gram.device))
        # Pivot i is the squared sine between a difference and the span of those before it.
        factor, info = torch.linalg.cholesky_ex(scaled.detach())
        pivots = factor.diagonal(dim1=1, dim2=2).square()
        ill = (info != 0) | ~(pivots.amin(1) * self.largest_condition > 1)
        scaled_rhs = torch.where(mask, rhs, 0.0) / root
        solved, _ = torch.linalg.solve_ex(scaled, scaled_rhs[:, :, None])
        weights = (solved[:, :, 0] / root).to(best.y.dtype).nan_to_num(0.0, 0.0, 0.0)
        return weights, ill

    def _propose(self, window: "History | StaticHistory", weights: Tensor, best: Guarded) -> Flat:
        """Anderson's step from the best point."""
        y_next = torch.lerp(best.fy, best.y, self.damping) if self.damping else best.fy
        if window.filled == 0:
            return y_next
        y_next = window.combine(weights, window.image, y_next)
        if self.damping:
            y_next = window.combine(-self.damping * weights, window.left, y_next)
        return y_next
