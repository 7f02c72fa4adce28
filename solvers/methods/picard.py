"""Picard iteration: apply the map until it stops moving."""

import math
from dataclasses import dataclass
from typing import final

import torch

from solvers.base import FixedPointSolver
from solvers.checks import check_damping
from solvers.promises import Promises
from solvers.types import Flat


@final
@dataclass(frozen=True, kw_only=True)
class Picard(FixedPointSolver):
    """Damped Picard iteration, the plain way to a fixed point.

        y <- damping * y + (1 - damping) * f(y)

    Converges linearly from any start when `f` is a contraction. Damping also reaches
    points where J = df/dy has eigenvalues below -1; it cannot help when one has real
    part of 1 or more. Cost per step: one call of `f`, one state of memory.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        damping: Weight kept on the old iterate, in [0, 1). 0 is undamped.
        keeps_last: A sample that does not converge gets its last finite point, as from a loop of so
            many calls, and not the one with the smallest residual.

    Raises:
        ValueError: A tolerance is negative, or `damping` lies outside [0, 1).

    References:
        C. T. Kelley, Iterative Methods for Linear and Nonlinear Equations, SIAM 1995, ch. 4.

    Example:
        >>> import solvers
        >>> s = solvers.solve(torch.cos, torch.zeros(1, 1), solver=Picard(rtol=1e-6))
        >>> round(s.value.item(), 4)
        0.7391
    """

    damping: float = 0.0
    keeps_last: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping)

    @property
    def promises(self) -> Promises:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Damping slows convergence; the pace is that at a spectral radius of 1/2."""
        return Promises(pace=-math.log2((1 + self.damping) / 2))

    def init(self, y: Flat) -> None:
        """Return None: Picard's iteration has no memory."""

    def step(self, y: Flat, fy: Flat, carry: None) -> tuple[Flat, None]:
        """Apply the map once, damped."""
        return (torch.lerp(fy, y, self.damping) if self.damping else fy), None
