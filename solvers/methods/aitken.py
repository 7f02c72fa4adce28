"""Aitken relaxation: an accelerated iteration with two states of memory."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch

from solvers.base import FixedPointSolver
from solvers.promises import Promises
from solvers.types import Flat, PerSample


class AitkenMemory(NamedTuple):
    """The residual g at the previous point, its norm, and the factor of the step from there."""

    g: Flat
    norm: PerSample
    factor: PerSample


@final
@dataclass(frozen=True, kw_only=True)
class Aitken(FixedPointSolver):
    """Aitken relaxation after Irons and Tuck: one factor per sample sets the step length.

    With g(y) = f(y) - y, dg the change of g in the last step, and t that step's factor:

        t <- -t * (g_previous . dg) / |dg|^2,    y <- y + t * g(y)

    and t = 1, Picard's step, where another step has just made |g| grow or t would be negative.
    For huge states, where a window of vectors does not fit: memory is one state beyond
    Picard's. Effective where J = df/dy has real eigenvalues (the factor is the spectral step
    of Barzilai and Borwein), also if some are below -1; less so where eigenvalues are complex.
    The residual is not monotone. Cost per step: one call of `f` and two inner products.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        largest: Bound on the factor's magnitude, at least 1. 1 never extrapolates.

    Raises:
        ValueError: A tolerance is negative, or `largest` is below 1.

    References:
        B. M. Irons, R. C. Tuck, A Version of the Aitken Accelerator for Computer Iteration,
        Int. J. Numer. Methods Eng. 1969 (the return to Picard's step is ours). J. Barzilai,
        J. M. Borwein, Two-Point Step Size Gradient Methods, IMA J. Numer. Anal. 1988, eq. 5
        (the same factor).

    Example:
        >>> import solvers
        >>> s = solvers.solve(torch.cos, torch.zeros(1, 1), solver=Aitken(rtol=1e-6))
        >>> s.converged.all().item(), s.num_evals < 9
        (True, True)
    """

    promises: ClassVar[Promises] = Promises(radius=math.inf)

    largest: float = 1e4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.largest, int | float) and self.largest >= 1):
            raise ValueError(
                f"`largest` must be at least 1, got {self.largest!r}. It bounds the step's factor."
            )

    def init(self, y: Flat) -> AitkenMemory:
        """Start with factor 1, so that the first step is Picard's."""
        ones = y.new_ones(y.shape[0], requires_grad=False)
        return AitkenMemory(torch.zeros_like(y, requires_grad=False), ones * torch.inf, ones)

    def step(self, y: Flat, fy: Flat, carry: AitkenMemory) -> tuple[Flat, AitkenMemory]:
        """Compute the factor from the last two residuals, and take the step."""
        g, factor = fy - y, carry.factor
        norm = torch.linalg.vector_norm(g, dim=1)
        dg = g - carry.g
        moved = torch.linalg.vecdot(dg, dg)
        ratio = torch.linalg.vecdot(carry.g, dg) / torch.where(moved > 0, moved, 1.0)
        found = (-factor * ratio).clamp(-self.largest, self.largest)
        # Take a plain step after one that made |g| grow, unless that was plain itself: then
        # the map may be expansive.
        plain = ((norm > carry.norm) | (found < 0)) & (factor != 1)
        # Without information (at the first step, where nothing moved, or after an overflow) a plain
        # step avoids a standstill.
        plain |= (moved == 0) | (found == 0) | ~found.isfinite()
        factor = torch.where(plain, 1.0, found)
        return torch.addcmul(y, factor[:, None], g), AitkenMemory(g, norm, factor)
