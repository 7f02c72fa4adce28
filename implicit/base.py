"""The contract of a backward mode: give a solution its gradient."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from implicit.autograd import attach_vjp, recorded_vjp
from solvers import FixedPointSolver, Solution, get_solver
from solvers.checks import KeywordOptions
from solvers.torch_internals import pytree
from solvers.types import Index, State

ClosedMap = Callable[[State], State]
# Multiplication with the transpose of df/dy at the solution, on lists of leaves.
Product = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class SolveContext:
    """What a backward mode may need to know about the solve before it.

    Attributes:
        solver: The forward solver.
        max_steps: The forward budget.
        batch_dims: Leading dims of the state that index samples.
        independent: Whether samples cannot influence each other; see `solvers.solve`.
        scale: The unit of each tensor of the state, or None; see `solvers.solve`.
        adjoints: The list to which solutions of adjoint equations are appended, in order.
        memory: The forward solver's memory at the end, as pairs of sample index and memory.
        f: The map that was given, so that a warning about its adjoint equation can name it.
        structure: The pytree structure of the state, for functions that take whole states.
    """

    solver: FixedPointSolver = field(default_factory=lambda: get_solver("anderson"))
    max_steps: int = 50
    batch_dims: int = 1
    independent: bool = False
    scale: Any = None
    adjoints: list[Solution] = field(default_factory=list)
    memory: list[tuple[Index, Any]] = field(default_factory=list)
    f: Any = None
    structure: pytree.TreeSpec | None = None


@dataclass(frozen=True, kw_only=True)
class BackwardMode(KeywordOptions, ABC):
    """Base of all backward modes: frozen options and one method, `attach`.

    Attributes:
        fits_graph: The mode can be part of a graph; see `implicit.graph`.
        needs_memory: The context must hold the forward solver's memory.
        solves_adjoint: The mode solves the adjoint equation. The evidence is in
            `Solution.adjoints`, and a warning says where that solve failed.
        moves_value: `attach` may return a point other than the solution.
        bias: The largest relative error of a gradient through a contraction of norm 0.6, which
            `implicit.testing.check` holds the mode to. A property where it depends on options.
    """

    fits_graph: ClassVar[bool] = True
    needs_memory: ClassVar[bool] = False
    solves_adjoint: ClassVar[bool] = False
    moves_value: ClassVar[bool] = False
    bias: ClassVar[float] = 1e-6

    def in_place_of_inverse(self, jacobian: Tensor) -> Tensor | None:
        """Return the matrix that the gradient has in place of (I - J)^-1, for tests.

        By default it is the inverse itself. A mode with a larger `bias` returns None, which means
        that its gradient depends on more than J.

        Args:
            jacobian: J = df/dy at the solution.
        """
        if self.bias > BackwardMode.bias:
            return None
        return torch.linalg.inv(torch.eye(len(jacobian), dtype=jacobian.dtype) - jacobian)

    @abstractmethod
    def attach(self, f: ClosedMap, y_star: State, context: SolveContext | None = None) -> State:
        """Return the solution with a gradient to all that `f` closes over.

        Args:
            f: The map, closed over its args.
            y_star: The solution, without gradient.
            context: How the solution was found; by default, with default options.
        """


class AdjointMode(BackwardMode):
    """Base of the modes that compute u = (I - J^T)^-1 v or put an approximation in its place."""

    @abstractmethod
    def adjoint(
        self, product: Product, v: Sequence[Tensor], context: SolveContext
    ) -> Sequence[Tensor]:
        """Return the adjoint u, from which the gradient of a parameter theta is u^T df/dtheta.

        Args:
            product: The function u -> J^T u.
            v: Leaves of the cotangent.
            context: How the solution was found.
        """

    def adjoint_in_graph(
        self, product: Product, v: Sequence[Tensor], context: SolveContext
    ) -> Sequence[Tensor]:
        """As `adjoint`, traced as part of a graph, where no value can be read or kept."""
        return self.adjoint(product, v, context)

    def attach(self, f: ClosedMap, y_star: State, context: SolveContext | None = None) -> State:
        """Record one call of `f`; the value stays `y_star`."""
        context = context or SolveContext()
        leaves, spec = pytree.tree_flatten(y_star)
        with torch.enable_grad():
            y = [leaf.detach().requires_grad_() for leaf in leaves]
            fy = pytree.tree_leaves(f(pytree.tree_unflatten(y, spec)))
        count = len(leaves)

        def vjp(inputs: Sequence[Tensor], v: Sequence[Tensor]) -> list[Tensor | None]:
            fy, y = inputs[:count], inputs[count:]

            def product(u: Sequence[Tensor]) -> list[Tensor]:
                products = recorded_vjp(fy, y, u)
                return [
                    torch.zeros_like(leaf) if part is None else part
                    for part, leaf in zip(products, v, strict=True)
                ]

            # The solution counts as a constant, so no cotangent is passed on to it.
            return [*self.adjoint(product, v, context), *[None] * count]

        return attach_vjp(y_star, [*fy, *y], vjp)
