"""Broyden's good method with limited memory, in its compact form."""

from dataclasses import dataclass
from typing import ClassVar, final

from solvers.anderson import check_history
from solvers.base import FixedPointSolver
from solvers.history import History, products
from solvers.registry import register
from solvers.types import Flat, Index


@final
@register("broyden")
@dataclass(frozen=True, kw_only=True)
class Broyden(FixedPointSolver):
    """Good Broyden: a quasi-Newton method on g(y) = f(y) - y, one rank-one update a step.

    The inverse Jacobian starts at -I, so the first step is Picard's. With S, dG, dF the
    last `history` differences of y, g(y) and f(y), and L the strictly lower (newer row,
    older column) part of S^T S, the updates collapse to

        y <- f(y) - dF (S^T dG + L)^-1 S^T g

    Superlinear near a regular solution, and with full memory often the fewest evaluations
    on stiff problems. No line search: far from the solution of a strongly nonlinear map it
    may wander. Cost per step: one call of `f`, O(history * n) arithmetic, and 2 states of
    memory per step taken, up to `history`; the window grows as needed and then rolls.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        history: Rank-one updates kept, at least 1.

    Raises:
        ValueError: An option is out of its range.

    References:
        C. G. Broyden, A Class of Methods for Solving Nonlinear Simultaneous Equations,
        Math. Comp. 1965. R. H. Byrd, J. Nocedal, R. B. Schnabel, Representations of
        Quasi-Newton Matrices, Math. Program. 1994, sec. 6 (the compact form; here it is
        inverted, which turns one small triangular factor into S^T dG + L).

    Example:
        >>> import solvers, torch
        >>> s = solvers.solve(torch.cos, torch.zeros(1, 1), solver=Broyden(rtol=1e-6))
        >>> s.converged.all().item(), s.num_evals < 8
        (True, True)
    """

    estimates_inverse: ClassVar[bool] = True

    history: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_history(self.history)

    def init(self, y: Flat) -> History:
        """An empty window that grows on demand."""
        return History.empty(y, min(self.history, 4))

    def keep(self, carry: History, samples: Index) -> History:
        """Drop all but these samples."""
        return carry.keep(samples)

    def step(self, y: Flat, fy: Flat, carry: History) -> tuple[Flat, History]:
        """One quasi-Newton step; see the class docstring for the update."""
        memory = carry
        y_next = fy
        if carry.point is not None:
            memory, newest = carry.grown(self.history).push(y, fy)
            change = memory.image[:, memory.slot] - newest
            column, rhs = products(memory.left, memory.filled, change, fy - y)
            (row,) = products(memory.image, memory.filled, newest)
            memory = memory.with_gram(row, column)
            y_next = memory.combine(memory.coefficients(rhs), memory.image, y_next)
        return y_next, memory._replace(point=y, fy=fy)
