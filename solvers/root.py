"""`root`: solve g(y) = 0 as the fixed-point equation y = y - g(y)."""

from typing import Any

from torch import Tensor

from solvers.base import FixedPointSolver
from solvers.checks import check_callable
from solvers.compiler import opaque
from solvers.solution import Solution
from solvers.solve import solve
from solvers.torch_internals import pytree
from solvers.trees import in_words
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
        return _difference(y, g(y, *args))

    return solve(f, y0, *args, solver=solver, max_steps=max_steps, **options)


def _difference(y: State, gy: Any) -> State:
    """Return y - g(y), which torch would broadcast if `g` returned another shape."""
    leaves, spec = pytree.tree_flatten(y)
    try:
        parts: list[Any] = spec.flatten_up_to(gy)
    except ValueError:
        parts = []
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        returned = pytree.tree_structure(gy)
        got = in_words(returned) if returned != spec else f"a {type(gy).__name__}"
        raise TypeError(
            f"`g` must return tensors, in the structure of its input: got {got}, expected "
            f"{in_words(spec)}."
        )
    for part, leaf in zip(parts, leaves, strict=True):
        if part.shape != leaf.shape:
            raise ValueError(
                f"`g` must return its input's shape, an equation for each unknown: got "
                f"{tuple(part.shape)} for y of shape {tuple(leaf.shape)}."
            )
    return pytree.tree_unflatten([a - b for a, b in zip(leaves, parts, strict=True)], spec)
