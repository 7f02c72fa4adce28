"""`root`: solve g(y) = 0 as the fixed-point equation y = y - g(y)."""

from typing import Any

from solvers.base import FixedPointSolver
from solvers.checks import check_callable
from solvers.compiler import opaque
from solvers.solution import Solution
from solvers.solve import solve
from solvers.torch_internals import pytree
from solvers.types import Map, State


@opaque
def root(
    g: Map,
    y0: State,
    *args: Any,
    solver: str | FixedPointSolver = "robust",
    max_steps: int = 200,
    **options: Any,
) -> Solution:
    """Find y with g(y, *args) = 0, for every sample of a batch, as y = y - g(y).

    The solution's `residual` is the root mean square of g, and a sample has converged where it
    is at most atol + rtol * rms(y). Sign and scale of g decide what the plain step y - g(y) does;
    Newton's method and `robust` do not depend on the sign. For gradients, pass the same map,
    `lambda y, *args: y - g(y, *args)`, to `implicit.fixed_point`.

    Args:
        g: Returns the structure, shapes and dtypes of its first argument.
        y0: First guess.
        *args: Per-sample tensors, passed on to `g`.
        solver: A registered name or an instance with options. For an absolute tolerance on rms(g)
            alone, pass `solvers.Robust(rtol=0.0, atol=...)`.
        max_steps: Budget of updates per sample.
        **options: Further options of `solve`.

    Returns:
        A `Solution`, as from `solve`.

    Raises:
        SolveError: A sample failed and `throw` is True. Other errors are those of `solve`.

    Example:
        >>> import torch
        >>> s = root(lambda y, a: y**2 - a, torch.ones(2, 1), torch.tensor([[4.0], [9.0]]))
        >>> s.value.flatten().round(decimals=3).tolist()
        [2.0, 3.0]
    """
    check_callable("g", g)

    def f(y: State, *args: Any) -> State:
        return pytree.tree_map(lambda a, b: a - b, y, g(y, *args))

    return solve(f, y0, *args, solver=solver, max_steps=max_steps, **options)
