"""`fixed_point`, the public entry: solve without gradients, then attach one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from implicit.autograd import attach_vjp
from implicit.base import BackwardMode, SolveContext
from implicit.isolation import Isolation, attach_isolated, isolated
from implicit.modes.unrolled import Unrolled
from implicit.registry import MODES
from solvers import FixedPointSolver, Solution
from solvers.checks import check_callable, check_flag
from solvers.compiler import LoopName, graph_wanted, opaque, run_graph
from solvers.counted_map import FROM_MAP, CheckedMap
from solvers.has_aux import first_of_pair, with_aux
from solvers.options import options_of
from solvers.packing import StatePacking
from solvers.registry import SOLVERS
from solvers.solution import raise_if_failed
from solvers.torch_internals import (
    dual_level_in_force,
    pytree,
    skip_this_frame,
    transforms_in_force,
)
from solvers.transforms import no_loop_under_vmap
from solvers.types import Map, State

RECORDED = (
    "If it works under `torch.no_grad()` alone, it leaves torch, as by `.numpy()`, or detaches or "
    "changes a tensor in place: use operations of torch that autograd can record."
)


@options_of(solver=SOLVERS, backward=MODES)
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
    independent: bool | None = None,
    scale: Any = None,
    has_aux: bool = False,
    loop: LoopName = "auto",
) -> Solution:
    """Find y with f(y, *args) = y, with a gradient to `args` and all that `f` closes over.

    Args:
        f: The map; returns the structure, shapes and dtypes of its first argument.
        y0: First guess. It receives no gradient, except under `backward="unrolled"`.
        *args: Per-sample tensors (leading batch dim as in `y0`), passed on to `f`, which must not
            write into them; see `solvers.solve`.
        solver: A registered name (see `solvers.names()`) or an instance with options.
        backward: A registered name (see `backward_modes()`) or an instance with options.
        max_steps: Budget of updates per sample, at least 0.
        throw: Raise if any sample fails; otherwise the verdicts are in the `Solution`.
        batch_dims: Leading dims that index samples; see `solvers.solve`.
        compact: Let stopped samples leave the batch during the solve.
        independent: Whether samples cannot influence each other; see `solvers.solve`.
        scale: The unit of each tensor of `y0`; see `solvers.solve`.
        has_aux: `f` returns a pair (y, aux); the solution's `aux` carries a gradient as well.
        loop: "auto", "eager" or "graph"; see `solvers.solve`. In a graph there is neither a warning
            about an adjoint equation nor an entry of `adjoints`.

    Returns:
        A `Solution` whose `value` carries the gradient. After a backward pass in `exact`
        mode, `solution.adjoints` holds the evidence for the gradient.

    Raises:
        SolveError: A sample failed and `throw` is True; carries the `Solution`.
        ValueError: Unknown names, a bad budget, a `loop` that cannot hold the solver or the mode,
            or `f` changed the shape of the state.
        TypeError: `y0` holds integers, or `f` changed dtype or structure.

    Example:
        >>> x = torch.ones(1, 1, requires_grad=True)
        >>> s = fixed_point(lambda y, x: torch.cos(y) * x, torch.zeros(1, 1), x)
        >>> s.value.sum().backward()
        >>> round(s.value.item(), 3), round(x.grad.item(), 3)
        (0.739, 0.442)
    """
    check_callable("f", f)
    check_flag("has_aux", has_aux)
    check_flag("throw", throw)
    chosen, mode = SOLVERS.resolve(solver), MODES.resolve(backward)
    independent = bool(args) if independent is None else independent
    options = {
        "solver": chosen,
        "max_steps": max_steps,
        "batch_dims": batch_dims,
        "independent": independent,
        "scale": scale,
    }
    if not graph_wanted(loop, chosen, mode.fits_graph or not torch.is_grad_enabled(), mode):
        how = {"mode": mode, "compact": compact, "throw": throw, "has_aux": has_aux}
        return _solve_eagerly(f, y0, args, **how, **options)
    from implicit.graph import fixed_point_in_graph  # most programs never need it

    only_y = first_of_pair(f) if has_aux else f
    solution = run_graph(fixed_point_in_graph, only_y, y0, args, {"mode": mode, **options})
    if throw:
        raise_if_failed(solution, independent)
    return with_aux(solution, f, args) if has_aux else solution


skip_this_frame(fixed_point.__wrapped__)  # type: ignore[attr-defined]


@opaque
def _solve_eagerly(
    f: Map, y0: State, args: tuple[Any, ...], *, has_aux: bool, **options: Any
) -> Solution:
    solution = _solve_with_gradient(first_of_pair(f) if has_aux else f, y0, args, **options)
    return with_aux(solution, f, args) if has_aux else solution


def _solve_with_gradient(
    f: Map,
    y0: State,
    args: tuple[Any, ...],
    *,
    mode: BackwardMode,
    compact: bool,
    throw: bool,
    **options: Any,
) -> Solution:
    context = SolveContext(f=f, **options)
    # There are two ways to a gradient. With plain autograd the backward mode runs after the solve
    # and records only what it needs (autograd.py): this is faster, and works with every mode.
    # Transforms of torch.func and forward mode can neither trace the solver's data-dependent loop
    # nor see what `f` closes over; for them the solve is one operation, with a derivative rule in
    # each direction (functorch.py). tests/implicit/test_transforms.py compares the two.
    if (transforms_in_force() or dual_level_in_force()) and not isinstance(mode, Unrolled):
        from implicit.functorch import solve_transformed  # most programs never need it

        checked = _checked(f, y0, context.batch_dims)
        return solve_transformed(checked, y0, args, mode, context, throw=throw)
    record = torch.is_grad_enabled()
    unrolled = mode if record and isinstance(mode, Unrolled) else None

    def run(y0: State, args: tuple[Any, ...]) -> Solution:
        return context.solver.iterate(
            f if unrolled is None else unrolled.recorded(f),
            y0,
            args,
            max_steps=context.max_steps,
            batch_dims=context.batch_dims,
            compact=compact,
            independent=context.independent,
            scale=context.scale,
            memory=context.memory if record and mode.needs_memory else None,
        )

    with torch.set_grad_enabled(unrolled is not None), no_loop_under_vmap("backward='unrolled'"):
        solution = run(y0, args)
    if throw:
        raise_if_failed(solution, context.independent)
    return _with_gradient(solution, mode, f, y0, args, context, run) if record else solution


def _with_gradient(
    solution: Solution,
    mode: BackwardMode,
    f: Map,
    y0: State,
    args: tuple[Any, ...],
    context: SolveContext,
    run: Callable[[State, tuple[Any, ...]], Solution],
) -> Solution:
    """Attach the gradient to the value, without contributions of NaN or inf samples."""
    isolation = isolated(solution, args, context.independent)
    checked = _checked(f, y0, context.batch_dims)
    if not isinstance(mode, Unrolled):
        value = attach_isolated(mode, checked, solution.value, args, isolation, context)
        return dataclasses.replace(solution, value=value, adjoints=context.adjoints)
    y_star = solution.value
    if isolation is not None:
        y_star, args = isolation.state(y_star), isolation.args(args)
        with isolation.saved_tensors():
            again = run(isolation.state(y0), args)
        solution = _recorded_again(again, solution, isolation)
    if bool(solution.num_steps.any()):
        return solution
    # Without a step nothing was recorded. The value gets a graph all the same, so that a backward
    # pass works and gives zero.
    value = _with_zero_gradient(solution.value, checked(y_star, args))
    return dataclasses.replace(solution, value=value)


def _recorded_again(again: Solution, first: Solution, isolation: Isolation) -> Solution:
    """Combine a solve that was recorded anew without its bad samples with the first's evidence."""
    return dataclasses.replace(
        first,
        value=isolation.merged(again.value, pytree.tree_map(Tensor.detach, first.value)),
        num_evals=first.num_evals + again.num_evals,
        rows_evaluated=first.rows_evaluated + again.rows_evaluated,
    )


def _with_zero_gradient(value: State, fy: State) -> State:
    """Connect the value to all that `fy` was computed from, by a gradient of zero."""
    zero = pytree.tree_map(lambda leaf: torch.zeros_like(leaf, requires_grad=False), value)
    edge = attach_vjp(zero, pytree.tree_leaves(fy), lambda _, v: [torch.zeros_like(x) for x in v])
    return pytree.tree_map(torch.add, value, edge)


def _checked(f: Map, y0: State, batch_dims: int) -> Callable[[State, tuple[Any, ...]], State]:
    """Make `f` check what it returns, and run under the autocast that is in force now."""
    checked = CheckedMap(f, StatePacking(y0, batch_dims))

    def call(y: State, args: tuple[Any, ...]) -> State:
        try:
            return checked(y, *args)
        except FROM_MAP as error:
            from solvers.call_errors import described  # most programs never need it

            error.add_note(
                f"`f` was called with gradients on, with y = {described(y)} and args = "
                f"{described(args)}. {RECORDED}"
            )
            raise

    return call
