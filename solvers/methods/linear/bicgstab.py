"""BiCGStab for affine maps: a linear solver of fixed, small memory for the adjoint equation."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from solvers.base import FixedPointSolver
from solvers.trees import of_turn
from solvers.types import Flat, PerSample


class BiConjugate(NamedTuple):
    """The iterate y with g = f(y) - y, the search directions, and in mid-iteration v and alpha.

    `turn` says what the next value of `f` is for: 0 the first residual, 1 A p, 2 A s. It is a
    tensor within a graph.
    """

    y: Flat
    g: Flat
    shadow: Flat
    p: Flat
    rho: PerSample
    v: Flat
    alpha: PerSample
    turn: int | Tensor


@final
@dataclass(frozen=True, kw_only=True)
class BiCGStab(FixedPointSolver):
    """BiCGStab on y = f(y) with an affine f, for every sample on its own.

    With f(y) = b + K y, A = I - K and g(y) = f(y) - y, a product with A comes from one more
    point, A p = g(y) - g(y + p); two of them make one iteration:

        s = g - alpha A p,    y <- y + alpha p + omega s,    g <- s - omega A s

    Every evaluation is at such a point, where the true residual is measured; the iterate
    itself is never evaluated, so that a sample stops one evaluation late. Memory is six
    states whatever the number of steps. For linear maps only. Residuals are not monotone,
    and may fluctuate. Where an inner product vanishes the recurrence breaks down and is
    restarted. Cost per step: one call of `f`.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.

    References:
        H. A. van der Vorst, Bi-CGSTAB: A Fast and Smoothly Converging Variant of Bi-CG,
        SIAM J. Sci. Stat. Comput. 1992. The difference form of A p is ours.

    Example:
        >>> K = torch.tensor([[0.0, 0.5], [0.1, 0.2]])
        >>> s = BiCGStab().iterate(lambda y: 1 + y @ K, torch.zeros(1, 2), max_steps=9)
        >>> s.converged.item()
        True
    """

    linear: ClassVar[bool] = True

    def init(self, y: Flat) -> BiConjugate:
        """The recurrence starts from the first residual."""
        state, number = torch.zeros_like(y), y.new_zeros(y.shape[0])
        return BiConjugate(state, state, state, state, number, state, number, 0)

    def init_static(self, y: Flat) -> BiConjugate:
        """The same, with a turn that is a tensor."""
        zero = torch.zeros((), dtype=torch.int64, device=y.device)
        return self.init(y)._replace(turn=zero)

    def step(self, y: Flat, fy: Flat, carry: BiConjugate) -> tuple[Flat, BiConjugate]:
        """Use f(y), which gives the first residual, and then A p and A s in turn."""
        g = fy - y

        def start() -> tuple[Flat, BiConjugate]:
            shadow = _unit(g)
            rho = _dot(shadow, g)
            return y + g, carry._replace(y=y, g=g, shadow=shadow, p=g, rho=rho, turn=1)

        def half_way() -> tuple[Flat, BiConjugate]:
            v = carry.g - g
            alpha = _ratio(carry.rho, _dot(carry.shadow, v))
            half = torch.addcmul(carry.y, alpha[:, None], carry.p)
            s = torch.addcmul(carry.g, -alpha[:, None], v)
            return half + s, carry._replace(y=half, g=s, v=v, alpha=alpha, turn=2)

        return of_turn(carry.turn, start, half_way, lambda: self._close(carry, carry.g - g))

    def _close(self, carry: BiConjugate, t: Flat) -> tuple[Flat, BiConjugate]:
        """Second half of an iteration, with t = A s."""
        s, v, alpha = carry.g, carry.v, carry.alpha
        direction = _unit(t)
        omega = _ratio(_dot(direction, s), _dot(direction, t))
        y = torch.addcmul(carry.y, omega[:, None], s)
        g = torch.addcmul(s, -omega[:, None], t)
        rho = _dot(carry.shadow, g)
        beta = _ratio(rho, carry.rho) * _ratio(alpha, omega)
        p = torch.addcmul(g, beta[:, None], torch.addcmul(carry.p, -omega[:, None], v))
        # Where a product vanishes the recurrence breaks down: restart it from here.
        broken = (rho == 0) | (omega == 0) | ~beta.isfinite()
        p = torch.where(broken[:, None], g, p)
        shadow = torch.where(broken[:, None], _unit(g), carry.shadow)
        rho = torch.where(broken, _dot(shadow, g), rho)
        return y + p, BiConjugate(y, g, shadow, p, rho, v, alpha, 1)


def _unit(a: Flat) -> Flat:
    """The direction of each row, whose products with rows of any size stay in the range."""
    return _ratio(a, a.abs().amax(1, keepdim=True))


def _dot(a: Flat, b: Flat) -> PerSample:
    return torch.linalg.vecdot(a, b)


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    """Quotient, or 0 where the denominator vanishes."""
    return torch.where(under == 0, 0.0, over / torch.where(under == 0, 1.0, under))
