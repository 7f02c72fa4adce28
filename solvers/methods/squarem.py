"""SQUAREM, squared extrapolation: acceleration with two states of memory and no matrix.

Two plain steps from y give r = f(y) - y and its change, v = (f(f(y)) - f(y)) - r. With
v = (J - I) r to first order, Barzilai and Borwein's step -a r, a = -|r| / |v|, is Cauchy's for
y = f(y), and applied twice it is

    y <- y - 2 a r + a^2 v,    then once y <- f(y)

The error's part along an eigenvalue j of J is multiplied by j (1 + a (1 - j))^2 in three calls.
"""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from solvers.base import FixedPointSolver
from solvers.trees import of_turn
from solvers.types import Flat, PerSample


class Cycle(NamedTuple):
    """The position within a cycle of three calls.

    Attributes:
        turn: The next call of `f`: 0 at y, 1 at f(y), 2 at the extrapolated point. A tensor within
            a graph.
        kept: y after the first call, f(f(y)) after the second.
        r: f(y) - y, known after the first call.
        norm: The norm of r.
    """

    turn: int | Tensor
    kept: Flat
    r: Flat
    norm: PerSample


@final
@dataclass(frozen=True, kw_only=True)
class Squarem(FixedPointSolver):
    """Squared extrapolation with the steplength S3, for every sample on its own.

        a = -|r| / |v|,    y <- f(y - 2 a r + a^2 v)

    with r = f(y) - y and v = f(f(y)) - 2 f(y) + y. Made for slow, monotone iterations such as
    expectation-maximisation, with real eigenvalues between 0 and 1, and for huge states. Where
    the extrapolated point has a residual of more than `growth` times that of y, the cycle ends
    with f(f(y)) instead: two plain steps, so that no contraction is lost. |a| may fall below 1,
    which damps and reaches eigenvalues below -1. Cost per step: one call of `f`, of which a
    cycle needs three; two states of memory.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        growth: Largest ratio of the residual at the extrapolated point to that at y, at least 1.

    Raises:
        ValueError: A tolerance is negative, or `growth` is below 1.

    References:
        R. Varadhan, C. Roland, Simple and Globally Convergent Methods for Accelerating the
        Convergence of Any EM Algorithm, Scand. J. Stat. 2008, sec. 3 (S3) and 5 (the last call
        of a cycle). There |a| is at least 1; the test of the residual is ours.

    Example:
        >>> import solvers
        >>> s = solvers.solve(lambda y: 0.99 * y + 1, torch.zeros(1, 1), solver=Squarem())
        >>> s.converged.item(), s.num_steps.item()
        (True, 2)
    """

    growth: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.growth, int | float) and self.growth >= 1):
            raise ValueError(f"`growth` must be at least 1, got {self.growth!r}.")

    def init(self, y: Flat) -> Cycle:
        """Begin with the first call of a cycle."""
        return Cycle(0, y, y, y.new_zeros(y.shape[0], requires_grad=False))

    def init_static(self, y: Flat) -> Cycle:
        """The same, with a turn that is a tensor."""
        zero = torch.zeros((), dtype=torch.int64, device=y.device)
        return self.init(y)._replace(turn=zero)

    def step(self, y: Flat, fy: Flat, carry: Cycle) -> tuple[Flat, Cycle]:
        """Take one step of the cycle."""
        g = fy - y
        norm = torch.linalg.vector_norm(g, dim=1)

        def first() -> tuple[Flat, Cycle]:
            return fy, Cycle(1, y, g, norm)

        def second() -> tuple[Flat, Cycle]:
            v = g - carry.r
            size = torch.linalg.vector_norm(v, dim=1)
            a = torch.where(size > 0, carry.norm / torch.where(size > 0, size, 1.0), 1.0)[:, None]
            y_next = carry.kept + a * (2 * carry.r + a * v)
            y_next = torch.where(y_next.isfinite().all(1, keepdim=True), y_next, fy)
            return y_next, Cycle(2, fy, carry.r, carry.norm)

        def third() -> tuple[Flat, Cycle]:
            good = norm <= self.growth * carry.norm
            return torch.where(good[:, None], fy, carry.kept), carry._replace(turn=0)

        return of_turn(carry.turn, first, second, third)
