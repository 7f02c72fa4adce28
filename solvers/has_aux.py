"""Maps that return a pair (y, aux): `has_aux=True`."""

import dataclasses
from typing import Any

from solvers.solution import Solution
from solvers.torch_internals import pytree
from solvers.types import Map, State


def first_of_pair(f: Map) -> Map:
    """Turn a map that returns (y, aux) into one that returns y."""

    def only(y: State, *args: Any) -> State:
        returned = f(y, *args)
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise TypeError(
                "With `has_aux=True`, `f` must return a pair (y, aux): got "
                f"{type(returned).__name__}."
            )
        return returned[0]

    only.__wrapped__ = f  # type: ignore[attr-defined]
    return only


def with_aux(solution: Solution, f: Map, args: tuple[Any, ...]) -> Solution:
    """Evaluate (y, aux) = f once more, at the solution, in the caller's grad mode."""
    rows = pytree.tree_leaves(solution.value)[0].shape[:1] if solution.result.ndim else (1,)
    return dataclasses.replace(
        solution,
        aux=f(solution.value, *args)[1],
        num_evals=solution.num_evals + 1,
        rows_evaluated=solution.rows_evaluated + rows[0],
    )
