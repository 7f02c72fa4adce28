"""Anderson acceleration, type II: extrapolate from the last few steps by least squares."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import torch

from solvers.base import FixedPointSolver
from solvers.checks import check_at_least_0, check_damping, check_history, check_integer
from solvers.methods.window import History
from solvers.promises import Promises
from solvers.types import Flat, Index

if TYPE_CHECKING:
    from solvers.methods.static import StaticHistory

# With a ridge below the rounding of inner products, the weights of linearly dependent differences
# would be arbitrary.
RIDGES = {torch.float32: 1e-6, torch.float64: 1e-12}


@final
@dataclass(frozen=True, kw_only=True)
class Anderson(FixedPointSolver):
    """Anderson acceleration (type II), with coefficients of its own for every sample.

    With g(y) = f(y) - y, and dF, dG the last `history` differences of f(y) and g(y):

        w = argmin_w |g - dG w|^2 + ridge * |diag(|dG|) w|^2
        y <- f(y) - dF w - damping * (g - dG w)

    The usual first choice: on smooth problems it needs about as many evaluations as a Krylov
    method, and works where J = df/dy has eigenvalues outside the unit circle. It is not
    monotone, and noise in `f` limits its accuracy. The first step is Picard's. Cost per step:
    one call of `f`, O(history * n) arithmetic, 2 * history states of memory.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        history: Differences kept, at least 1.
        damping: Weight kept on the old iterate, in [0, 1). 0 is undamped (mixing 1).
        ridge: Tikhonov term relative to each difference's own size, at least 0. None: a value
            above the rounding of the dtype, 1e-6 in float32 and 1e-12 in float64. The method may
            not converge where |J| is above about 1 / ridge.
        min_steps: Steps that a sample makes before it may stop within the tolerance, at least 0
            and at most the budget. A sample whose residual is 0 stops all the same.

    Raises:
        ValueError: An option is out of its range.

    References:
        D. G. Anderson, Iterative Procedures for Nonlinear Integral Equations, J. ACM 1965.
        H. F. Walker, P. Ni, Anderson Acceleration for Fixed-Point Iterations, SIAM J. Numer.
        Anal. 2011, sec. 2 (the difference form used here). The ridge scaled per column is
        ours: an absolute one stops helping as the differences shrink.

    Example:
        >>> import solvers
        >>> s = solvers.solve(torch.cos, torch.zeros(1, 1), solver=Anderson(rtol=1e-6))
        >>> s.converged.all().item(), s.num_evals < 8
        (True, True)
    """

    promises: ClassVar[Promises] = Promises(radius=math.inf)
    estimates_inverse: ClassVar[bool] = True

    history: int = 8
    damping: float = 0.0
    ridge: float | None = None
    min_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping)
        check_history(self.history)
        check_integer("min_steps", self.min_steps, 0)
        if self.ridge is not None:
            check_at_least_0("ridge", self.ridge)

    def init(self, y: Flat) -> History:
        """An empty window."""
        return History.empty(y, self.history)

    def init_static(self, y: Flat) -> "StaticHistory":
        """An empty window of fixed size."""
        from solvers.methods.static import StaticHistory  # most programs never need it

        return StaticHistory.empty(y, self.history)

    def keep(self, carry: History, samples: Index) -> History:
        """Drop all but these samples."""
        return carry.keep(samples)

    def step(self, y: Flat, fy: Flat, carry: History) -> tuple[Flat, History]:
        """Extrapolate; see the class docstring for the update."""
        memory = carry
        y_next = torch.lerp(fy, y, self.damping) if self.damping else fy
        g = fy - y
        if carry.point is not None:
            memory, newest = carry.push(g, fy)
            column, rhs = memory.latest_products(newest, g)
            ridge = RIDGES[y.dtype] if self.ridge is None else self.ridge
            memory = memory.with_gram(column, column, ridge)
            weights = memory.coefficients(rhs)
            y_next = memory.combine(weights, memory.image, y_next)
            if self.damping:
                y_next = memory.combine(-self.damping * weights, memory.left, y_next)
        return y_next, memory.moved(g, fy)
