"""The contract of a backward mode: give a solution its gradient."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from solvers import Anderson, FixedPointSolver, Solution
from solvers.types import State

ClosedMap = Callable[[State], State]


@dataclass(frozen=True, kw_only=True)
class SolveContext:
    """What a backward mode may want to know about the solve that it follows.

    Attributes:
        solver: The forward solver.
        max_steps: The forward budget.
        batch_dims: Leading dims of the state that index samples.
        adjoints: Where solutions of adjoint equations are appended, in order.
    """

    solver: FixedPointSolver = field(default_factory=Anderson)
    max_steps: int = 50
    batch_dims: int = 1
    adjoints: list[Solution] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class BackwardMode(ABC):
    """Base of all backward modes: frozen options and one method.

    Attributes:
        records_solver: The solve itself runs under autograd, and `attach` adds nothing.
    """

    records_solver: ClassVar[bool] = False

    @abstractmethod
    def attach(self, f: ClosedMap, y_star: State, context: SolveContext | None = None) -> State:
        """Return the solution with a gradient to all that `f` closes over.

        Args:
            f: The map, closed over its args.
            y_star: The solution, without gradient.
            context: How it was found; by default, with default options.
        """
