"""Inexact Newton with a Krylov method inside: few steps, many products with the Jacobian."""

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch

from solvers.base import Evaluation, FixedPointSolver
from solvers.gmres import Gmres
from solvers.registry import register
from solvers.types import Flat, PerSample

# Halving ends here. The smallest step is then taken although |g| rose: it may lead out of a local
# minimum. That often, and no more: at the noise floor of `f` nothing leads on.
SMALLEST_SHARE, MOST_ESCAPES = 2.0**-8, 4


class Descent(NamedTuple):
    """Where the search stands: the point it goes from, its residual, and what it tries.

    Attributes:
        y: The point.
        norm: Its |g|.
        direction: Newton's, from there.
        share: How much of it was tried last.
        escapes: How often no share would do.
    """

    y: Flat
    norm: PerSample
    direction: Flat
    share: PerSample
    escapes: PerSample


@final
@register("newton_krylov")
@dataclass(frozen=True, kw_only=True)
class NewtonKrylov(FixedPointSolver):
    """Inexact Newton on g(y) = f(y) - y, its linear systems solved by GMRES.

        (I - J(y)) p = g(y) to `forcing` * |g(y)|,    y <- y + t * p

    with J = df/dy applied as a Jacobian-vector product in forward mode, never formed, and t
    halved (1, 1/2, 1/4 ...) while |g| fails to fall. For maps that are stiff or far from
    contractive, such as implicit time steps: the number of steps hardly depends on the
    conditioning, only the number of products does. `f` must support forward-mode
    differentiation. Cost per step: one call of `f` and up to `inner_steps` + 1 products, each
    counted as one call; 2 * `inner_steps` states of memory.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        forcing: Relative residual of the linear systems, in (0, 1).
        inner_steps: Most GMRES steps per Newton step, at least 1.

    Raises:
        ValueError: An option is out of its range.

    References:
        D. A. Knoll, D. E. Keyes, Jacobian-free Newton-Krylov Methods, J. Comput. Phys. 2004,
        sec. 2. R. S. Dembo, S. C. Eisenstat, T. Steihaug, Inexact Newton Methods, SIAM J.
        Numer. Anal. 1982.

    Example:
        >>> import solvers
        >>> s = solvers.solve(lambda y: y - (y**3 - 8), torch.ones(1, 1), solver=NewtonKrylov())
        >>> round(s.value.item(), 4)
        2.0
    """

    forcing: float = 0.05
    inner_steps: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.forcing, float) and 0 < self.forcing < 1):
            raise ValueError(f"`forcing` must lie in (0, 1), got {self.forcing!r}.")
        steps = self.inner_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"`inner_steps` must be an integer of at least 1, got {steps!r}.")

    def init(self, y: Flat) -> Descent:
        """Anything is better than nothing: the first point is accepted."""
        count = y.new_ones(len(y), requires_grad=False)
        return Descent(y, count * math.inf, torch.zeros_like(y), count, 0 * count)

    def step(self, y: Flat, fy: Flat, carry: Descent) -> tuple[Flat, Descent]:
        """Not enough for Newton: see `move`."""
        raise NotImplementedError("newton_krylov needs `f`'s derivative: call `move`.")

    def move(self, y: Flat, fy: Flat, carry: Descent, f: Evaluation) -> tuple[Flat, Descent]:
        """A new direction where |g| fell, half the last step where it did not."""
        g = fy - y
        # Scaled before it is squared, so that no scale of the state leaves the dtype's range.
        largest = g.abs().amax(1) if g.shape[1] else g.new_zeros(len(g))
        unit = g / torch.where((largest > 0) & largest.isfinite(), largest, 1.0)[:, None]
        norm = torch.linalg.vector_norm(unit, dim=1) * largest
        exhausted = (norm >= carry.norm) & (carry.share <= SMALLEST_SHARE)
        escapes = carry.escapes + (exhausted & (carry.share > 0)).to(norm.dtype)
        # Where it stays, only its neighbours, if it has any, can have changed the residual.
        moved_on = (carry.share == 0) & (norm != carry.norm)
        accepted = (norm < carry.norm) | (exhausted & (escapes <= MOST_ESCAPES)) | moved_on
        direction = carry.direction
        if bool(accepted.any()):
            fresh = self._direction(y, unit, f) * largest[:, None]
            direction = torch.where(accepted[:, None], fresh, direction)
        halved = torch.where(exhausted, 0.0, carry.share / 2)
        share = torch.where(accepted, 1.0, halved)
        base = torch.where(accepted[:, None], y, carry.y)
        norm = torch.where(accepted, norm, carry.norm)
        y_next = torch.addcmul(base, share[:, None], direction)
        return y_next, Descent(base, norm, direction, share, escapes)

    def _direction(self, y: Flat, unit: Flat, f: Evaluation) -> Flat:
        """Solve p = g + J p for a residual g of size one, so that `forcing` is relative."""
        product = f.linearise(y).push
        root = math.sqrt(max(y.shape[1], 1))
        size = torch.linalg.vector_norm(unit, dim=1, keepdim=True) / root
        rhs = unit / torch.where(size > 0, size, 1.0)
        inner = Gmres(rtol=0.0, atol=self.forcing, history=self.inner_steps)
        solution = inner.iterate(
            lambda p: rhs + product(p), rhs, max_steps=self.inner_steps, independent=True
        )
        return size * solution.value
