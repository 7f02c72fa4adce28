"""`fixed_point`, the public entry: solve without gradients, then attach one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicit.base import BackwardMode, ClosedMap, SolveContext
from implicit.isolation import Isolation, isolated
from implicit.registry import MODES
from implicit.transforms import (
    solve_transformed,
    transforms_active,
)
from implicit.unrolled import Unrolled
from solvers import FixedPointSolver, Solution
from solvers.compiler import opaque
from solvers.layout import Layout
from solvers.registry import SOLVERS
from solvers.solve import no_loop_under_vmap, raise_if_failed
from solvers.types import Map, State


@opaque
def fixed_point(
    f: Map,
    y0: State,
    *args: Any,
    solver: str | FixedPointSolver = "anderson",
    backward: str | BackwardMode = "exact",
    max_steps: int = 50,
    throw: bool = True,
    batch_dims: int = 1,
    compact: bool = True,
) -> Solution:
    """Find y with f(y, *args) = y, with a gradient to `args` and all that `f` closes over.

    Args:
        f: The map; returns the structure, shapes and dtypes of its first argument.
        y0: First guess. It receives no gradient, except under `backward="unrolled"`.
        *args: Per-sample tensors (leading batch dim as in `y0`), passed on to `f`.
        solver: A registered name (see `solvers.names()`) or an instance with options.
        backward: A registered name (see `backward_modes()`) or an instance with options.
        max_steps: Budget of updates per sample, at least 0.
        throw: Raise if any sample fails; otherwise the verdicts are in the `Solution`.
        batch_dims: Leading dims that index samples; see `solvers.solve`.
        compact: Let stopped samples leave the batch during the solve.

    Returns:
        A `Solution` whose `value` carries the gradient. After a backward pass in `exact`
        mode, `solution.adjoints` holds the evidence for the gradient.

    Raises:
        SolveError: A sample failed and `throw` is True; carries the `Solution`.
        ValueError: Unknown names, a bad budget, or `f` changed the shape of the state.
        TypeError: `y0` is not floating point, or `f` changed dtype or structure.

    Example:
        >>> x = torch.ones(1, 1, requires_grad=True)
        >>> s = fixed_point(lambda y, x: torch.cos(y) * x, torch.zeros(1, 1), x)
        >>> s.value.sum().backward()
        >>> round(s.value.item(), 3), round(x.grad.item(), 3)
        (0.739, 0.442)
    """
    chosen, mode = SOLVERS.resolve(solver), MODES.resolve(backward)
    context = SolveContext(
        solver=chosen, max_steps=max_steps, batch_dims=batch_dims, independent=bool(args), f=f
    )
    if transforms_active() and not isinstance(mode, Unrolled):
        checked = _checked(f, y0, batch_dims)
        return solve_transformed(checked, y0, args, mode, context, throw=throw)
    record = torch.is_grad_enabled()
    unrolled = mode if record and isinstance(mode, Unrolled) else None

    def run(y0: State, args: tuple[Any, ...]) -> Solution:
        return chosen.iterate(
            f if unrolled is None else unrolled.recorded(f),
            y0,
            args,
            max_steps=max_steps,
            batch_dims=batch_dims,
            compact=compact,
            memory=context.memory if record and mode.needs_memory else None,
        )

    with torch.set_grad_enabled(unrolled is not None), no_loop_under_vmap("backward='unrolled'"):
        solution = run(y0, args)
    if throw:
        raise_if_failed(solution)
    if not record:
        return solution
    apart = None if throw else isolated(solution, args, context.independent)
    if unrolled is not None:
        return solution if apart is None else _once_more(run, y0, args, solution, apart)
    checked, y_star = _checked(f, y0, batch_dims), solution.value
    if apart is not None:
        args, y_star = apart.args(args), apart.state(y_star)
    closed: ClosedMap = lambda y: checked(y, args)  # noqa: E731
    if apart is not None:
        closed = apart.frozen(closed, y_star)
    value = mode.attach(closed, y_star, context)
    if apart is not None:
        value = apart.merged(value, solution.value)
    return dataclasses.replace(solution, value=value, adjoints=context.adjoints)


def _once_more(
    run: Callable[[State, tuple[Any, ...]], Solution],
    y0: State,
    args: tuple[Any, ...],
    first: Solution,
    apart: Isolation,
) -> Solution:
    """Record a solve anew without its bad samples, whose evidence is that of the first."""
    again = run(apart.state(y0), apart.args(args))
    return dataclasses.replace(
        first,
        value=apart.merged(again.value, pytree.tree_map(Tensor.detach, first.value)),
        num_evals=first.num_evals + again.num_evals,
        rows_evaluated=first.rows_evaluated + again.rows_evaluated,
    )


def _checked(f: Map, y0: State, batch_dims: int) -> Callable[[State, tuple[Any, ...]], State]:
    """`f` of the state and all args, checked, and under the autocast that is in force now."""
    layout = Layout(y0, batch_dims)
    autocast = torch.is_autocast_enabled(layout.device.type)
    autocast_dtype = torch.get_autocast_dtype(layout.device.type)

    def checked(y: State, args: tuple[Any, ...]) -> State:
        # A backward pass may call when autocast is off, or on.
        with torch.autocast(layout.device.type, dtype=autocast_dtype, enabled=autocast):
            fy = f(y, *args)
        return layout.accept(y, fy, autocast)

    return checked
