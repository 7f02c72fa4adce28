"""The contract of a backward mode: give a solution its gradient."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from implicit.autograd import graft, pull_back
from solvers import Anderson, FixedPointSolver, Solution
from solvers.torch_internals import pytree
from solvers.types import Index, State

ClosedMap = Callable[[State], State]
# Multiplication with the transpose of df/dy at the solution, on lists of leaves.
Product = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class SolveContext:
    """What a backward mode may want to know about the solve that it follows.

    Attributes:
        solver: The forward solver.
        max_steps: The forward budget.
        batch_dims: Leading dims of the state that index samples.
        independent: Whether samples cannot influence each other, as those that have `args`.
        scale: The unit of each tensor of the state, or None; see `solvers.solve`.
        adjoints: Where solutions of adjoint equations are appended, in order.
        memory: The forward solver's memory at the end, as pairs of sample index and memory.
        f: The map that was given, to name it where its adjoint equation fails.
        structure: Of the state, for what wants states instead of their leaves.
    """

    solver: FixedPointSolver = field(default_factory=Anderson)
    max_steps: int = 50
    batch_dims: int = 1
    independent: bool = False
    scale: Any = None
    adjoints: list[Solution] = field(default_factory=list)
    memory: list[tuple[Index, Any]] = field(default_factory=list)
    f: Any = None
    structure: pytree.TreeSpec | None = None


@dataclass(frozen=True, kw_only=True)
class BackwardMode(ABC):
    """Base of all backward modes: frozen options and one method.

    Attributes:
        records_solver: The solve itself runs under autograd, and `attach` adds nothing.
        needs_memory: The context must hold the forward solver's memory.
        solves_adjoint: It solves the adjoint equation: the evidence is in `Solution.adjoints`, and
            where that solve fails, a warning says so.
        moves_value: What `attach` returns may be another point than the solution.
        bias: Promise for `implicit.testing.check`: the largest relative error of a gradient
            through a contraction of norm 0.6. A property where options decide.
    """

    records_solver: ClassVar[bool] = False
    needs_memory: ClassVar[bool] = False
    solves_adjoint: ClassVar[bool] = False
    moves_value: ClassVar[bool] = False
    bias: ClassVar[float] = 1e-6

    def in_place_of_inverse(self, jacobian: Tensor) -> Tensor | None:
        """What the gradient has in place of (I - J)^-1: a matrix, to which tests hold the mode.

        By default the inverse itself or, for a mode with a larger `bias`, None: unknown, as it
        depends on more than J.

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
            context: How it was found; by default, with default options.
        """


class AdjointMode(BackwardMode):
    """Base of the modes that put something in place of u = (I - J^T)^-1 v."""

    @abstractmethod
    def adjoint(
        self, product: Product, v: Sequence[Tensor], context: SolveContext
    ) -> Sequence[Tensor]:
        """What meets df/dtheta in place of the cotangent v.

        Args:
            product: u -> J^T u.
            v: Leaves of the cotangent.
            context: How the solution was found.
        """

    def attach(self, f: ClosedMap, y_star: State, context: SolveContext | None = None) -> State:
        """Record one call of `f`; the value stays `y_star`."""
        context = context or SolveContext()
        leaves, spec = pytree.tree_flatten(y_star)
        with torch.enable_grad():
            anchor = [leaf.detach().requires_grad_() for leaf in leaves]
            path = pytree.tree_leaves(f(pytree.tree_unflatten(anchor, spec)))
        count = len(leaves)

        def pull(inputs: Sequence[Tensor], v: Sequence[Tensor]) -> list[Tensor | None]:
            path, anchor = inputs[:count], inputs[count:]

            def product(u: Sequence[Tensor]) -> list[Tensor]:
                pulled = pull_back(path, anchor, u)
                return [
                    torch.zeros_like(a) if p is None else p for p, a in zip(pulled, v, strict=True)
                ]

            # The solution counts as constant: what `f` sends to it ends there.
            return [*self.adjoint(product, v, context), *[None] * count]

        return graft(y_star, [*path, *anchor], pull)
