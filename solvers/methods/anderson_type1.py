"""Anderson acceleration, type I: the multisecant form that approximates the Jacobian."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch

from solvers.base import FixedPointSolver
from solvers.checks import check_damping, check_history
from solvers.methods.window import History
from solvers.promises import Promises
from solvers.types import Flat, Index

if TYPE_CHECKING:
    from solvers.methods.static import StaticHistory


@final
@dataclass(frozen=True, kw_only=True)
class AndersonType1(FixedPointSolver):
    """Anderson acceleration (type I), with coefficients of its own for every sample.

    With g(y) = f(y) - y, and S, dG, dF the last `history` differences of y, g(y) and f(y):

        (S^T dG) w = S^T g,    y <- f(y) - dF w - damping * (g - dG w)

    It builds an approximate Jacobian from all secant pairs at once, where type II builds an
    approximate inverse and Broyden adds one pair after the other. It can need fewer steps
    than type II on mildly nonlinear maps, but the small matrix is not symmetric and may be
    singular far from convergence; then the step is Picard's. Cost per step: one call of `f`,
    O(history * n) arithmetic, 2 * history states of memory.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        history: Differences kept, at least 1; no more are used than a sample has entries.
        damping: Weight kept on the old iterate, in [0, 1). 0 is undamped.

    Raises:
        ValueError: An option is out of its range.

    References:
        H. Fang, Y. Saad, Two Classes of Multisecant Methods for Nonlinear Acceleration,
        Numer. Linear Algebra Appl. 2009, sec. 3. J. Zhang, B. O'Donoghue, S. Boyd, Globally
        Convergent Type-I Anderson Acceleration, SIAM J. Optim. 2020, eq. 4.

    Example:
        >>> import solvers
        >>> s = solvers.solve(torch.cos, torch.zeros(1, 1), solver=AndersonType1(rtol=1e-6))
        >>> s.converged.all().item(), s.num_evals < 8
        (True, True)
    """

    promises: ClassVar[Promises] = Promises(radius=math.inf)
    estimates_inverse: ClassVar[bool] = True

    history: int = 8
    damping: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping)
        check_history(self.history)

    def init(self, y: Flat) -> History:
        """An empty window, with no more slots than differences can be linearly independent."""
        return History.empty(y, max(1, min(self.history, y.shape[1])))

    def init_static(self, y: Flat) -> "StaticHistory":
        """An empty window of fixed size."""
        from solvers.methods.static import StaticHistory  # most programs never need it

        return StaticHistory.empty(y, max(1, min(self.history, y.shape[1])))

    def keep(self, carry: History, samples: Index) -> History:
        """Drop all but these samples."""
        return carry.keep(samples)

    def step(self, y: Flat, fy: Flat, carry: History) -> tuple[Flat, History]:
        """Extrapolate; see the class docstring for the update."""
        memory = carry
        y_next = torch.lerp(fy, y, self.damping) if self.damping else fy
        if carry.point is not None and carry.fy is not None:
            memory, newest = carry.push(y, fy)
            g = fy - y
            change = (fy - carry.fy) - newest
            column, rhs, on_steps = memory.products(memory.left, change, g, newest)
            (on_images,) = memory.products(memory.image, newest)
            # A change of g that is only rounding says nothing about J. Do not divide by it.
            size = torch.linalg.vector_norm(newest, dim=1) * torch.linalg.vector_norm(g, dim=1)
            noise = 8 * torch.finfo(y.dtype).eps * size
            memory = memory.with_gram(on_images - on_steps, column, noise=noise)
            weights = memory.coefficients(rhs, symmetric=False)
            y_next = memory.combine((1 - self.damping) * weights, memory.image, y_next)
            if self.damping:
                y_next = memory.combine(self.damping * weights, memory.left, y_next)
        return y_next, memory.moved(y, fy)
