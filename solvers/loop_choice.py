"""Which loop a solve runs in: the eager one of `solvers.loop`, or that of a graph."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch

from solvers.base import FixedPointSolver
from solvers.graph import check_graph, fits_graph
from solvers.solution import Solution
from solvers.torch_internals import one_graph_asked_for
from solvers.types import Map, State

LoopName: TypeAlias = Literal["auto", "eager", "graph"]
LOOPS = ("auto", "eager", "graph")


def graph_wanted(
    loop: LoopName, solver: FixedPointSolver, able: bool = True, mode: object = None
) -> bool:
    """Whether a solve runs in the loop of `solvers.graph`.

    Args:
        loop: What the caller asks for.
        solver: The solver.
        able: Whether a graph can hold the backward mode.
        mode: The backward mode.

    Raises:
        ValueError: An unknown loop, or a graph cannot hold that of this solver.
    """
    if loop not in LOOPS:
        raise ValueError(f"`loop` must be one of {', '.join(map(repr, LOOPS))}: got {loop!r}.")
    if loop == "graph":
        check_graph(solver)
        if not able:
            raise ValueError(
                f"{type(mode).__name__} needs more of the solve than a graph can hold. Use another "
                "backward mode there, such as 'exact', or pass `loop='eager'`."
            )
        return True
    return loop == "auto" and able and fits_graph(solver) and one_graph_asked_for()


def run_graph(
    solve: Callable[..., Solution], f: Map, y0: State, args: tuple[Any, ...], options: Any
) -> Solution:
    """Call a function that solves in a graph: as part of the graph that is traced, or its own."""
    if torch.compiler.is_compiling():
        return solve(f, y0, args, **options)
    solution = _compiled(solve)(f, y0, args, **options)
    counts = {name: int(getattr(solution, name)) for name in ("num_evals", "rows_evaluated")}
    return dataclasses.replace(solution, **counts)


@functools.cache
def _compiled(solve: Callable[..., Solution]) -> Callable[..., Solution]:
    """The function as one graph, which torch makes anew for other maps, solvers and shapes."""
    return torch.compile(solve, fullgraph=True)
