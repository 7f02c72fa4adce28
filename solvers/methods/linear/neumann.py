"""The Neumann series for affine maps: the simplest linear solver for the adjoint equation."""

from dataclasses import dataclass
from typing import ClassVar, final

from solvers.base import FixedPointSolver
from solvers.types import Flat


@final
@dataclass(frozen=True, kw_only=True)
class Neumann(FixedPointSolver):
    """Sum the Neumann series of y = b + K y, one term a step.

        y_k = b + K b + ... + K^k b,    y <- f(y)

    This is Picard's iteration for linear maps. Converges if and only if the spectral radius
    of K is below 1, at that rate; needs no memory. Cost per step: one call of `f`.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.

    References:
        J. Lorraine, P. Vicol, D. Duvenaud, Optimizing Millions of Hyperparameters by Implicit
        Differentiation, AISTATS 2020, arXiv:1911.02590, sec. 3.2.

    Example:
        >>> import torch
        >>> s = Neumann().iterate(lambda y: 1 + y / 2, torch.zeros(1, 1), max_steps=30)
        >>> round(s.value.item(), 3)
        2.0
    """

    linear: ClassVar[bool] = True

    def init(self, y: Flat) -> None:
        """Return None: the iterate is the partial sum, and there is no other memory."""

    def step(self, y: Flat, fy: Flat, carry: None) -> tuple[Flat, None]:
        """Add one term of the series."""
        return fy, None
