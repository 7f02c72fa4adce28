"""Solve the linear equations of the exact gradient, record the evidence, and warn of failures."""

import dataclasses
import functools
import inspect
import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from implicit.base import SolveContext
from solvers import FixedPointSolver, Result, Solution
from solvers.norms import scaled_norms
from solvers.packing import StatePacking
from solvers.registry import LINEAR, SOLVERS
from solvers.torch_internals import pytree
from solvers.trees import as_wide
from solvers.types import State

AffineMap = Callable[[list[Tensor]], list[Tensor]]
Preconditioner = Callable[[State], State]

# How many solutions of adjoint equations are kept, the newest ones: each has the size of a state.
KEPT = 8

# The registry of warnings already given, for each layer: a module, or the code of a function.
_warned: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def adjoint_solver(
    chosen: str | FixedPointSolver | None, max_steps: int | None, context: SolveContext
) -> tuple[FixedPointSolver, int]:
    """Choose the solver of an adjoint equation, at tolerances relative to v, and its budget."""
    budget = context.max_steps if max_steps is None else max_steps
    solver = context.solver if chosen is None else chosen
    if isinstance(solver, str):
        registry = LINEAR if solver in LINEAR.entries else SOLVERS
        solver = dataclasses.replace(
            registry.resolve(solver), rtol=context.solver.rtol, atol=context.solver.atol
        )
    if not isinstance(chosen, FixedPointSolver):
        # The forward `atol` has the units of y; u has those of the loss over y, so that a loss
        # divided by a large batch would end the solve at once. Relative tolerance only.
        solver = dataclasses.replace(solver, rtol=solver.rtol + solver.atol, atol=0.0)
    return solver.for_affine(budget)


def solve_affine(
    affine: AffineMap,
    v: Sequence[Tensor],
    start: list[Tensor],
    solver: FixedPointSolver,
    max_steps: int,
    context: SolveContext,
) -> tuple[list[Tensor], Solution]:
    """Find the fixed point of an affine map with constant part v, as leaves and a solution.

    Tokens of one row are solved as one system, whatever `batch_dims` says: a causal map couples
    them, and a token that the loss leaves out has no v of its own to measure its residual by.
    Linear solvers, whose recurrences hold for a whole system only, also take samples that may be
    coupled as one system. Each sample gets the verdict of its system.
    """
    batch_dims = _batch_dims(solver, context)
    # A single tensor is passed without its list, which the solvers pack faster.
    single = len(v) == 1
    with torch.no_grad():
        solution = solver.iterate(
            (lambda u: affine([u])[0]) if single else affine,
            start[0] if single else start,
            max_steps=max_steps,
            batch_dims=batch_dims,
            independent=context.independent,
            rhs=v[0] if single else list(v),
        )
        u = [solution.value] if single else list(solution.value)
        lost = _lost(u, v, solution, solver, batch_dims, context.independent)
        if bool(lost.any()):
            u, solution = _withdrawn(solution, lost, u, start, affine)
    if batch_dims != context.batch_dims:
        solution = _by_sample(solution, v[0].shape[: context.batch_dims])
    return u, solution


def solve_affine_in_graph(
    affine: AffineMap,
    v: Sequence[Tensor],
    solver: FixedPointSolver,
    max_steps: int,
    context: SolveContext,
) -> tuple[list[Tensor], Tensor]:
    """As `solve_affine`, as part of a graph; also return which samples have converged."""
    from solvers.graph import solve_in_graph  # most programs never need it

    batch_dims = _batch_dims(solver, context)
    solution = solve_in_graph(
        affine,
        list(v),
        (),
        solver=solver,
        max_steps=max_steps,
        batch_dims=batch_dims,
        independent=context.independent,
        rhs=list(v),
    )
    lost = _lost(solution.value, v, solution, solver, batch_dims, context.independent)
    u = [torch.where(as_wide(lost, a), b, a) for a, b in zip(solution.value, v, strict=True)]
    return u, _spread(solution.converged & ~lost, v[0].shape[: context.batch_dims])


def _batch_dims(solver: FixedPointSolver, context: SolveContext) -> int:
    joint = solver.linear and not context.independent
    return 0 if joint else min(context.batch_dims, 1)


def _lost(
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    solution: Solution,
    solver: FixedPointSolver,
    batch_dims: int,
    independent: bool,
) -> Tensor:
    """Find samples whose residual means nothing, since v is lost in the rounding of u.

    The equation may have no solution; then u grows until its residual is below rounding.
    """
    packing = StatePacking(list(u), batch_dims)
    if not sum(packing.sizes):
        return torch.zeros_like(solution.converged)
    eps = torch.finfo(packing.dtype).eps
    largest, size = (
        torch.linalg.vector_norm(packing.pack(list(leaves)), torch.inf, dim=1) for leaves in (u, v)
    )
    if not independent:  # a sample where v is zero still contributes to the others
        size = size.amax()
    lost = 0.5 * eps * largest > solver.atol + max(solver.rtol, 4 * eps) * size
    return solution.converged & lost.view(solution.result.shape)


def _withdrawn(
    solution: Solution, lost: Tensor, u: list[Tensor], start: list[Tensor], affine: AffineMap
) -> tuple[list[Tensor], Solution]:
    """Go back to the start, the best point known, where no residual can be measured at u."""
    packing = StatePacking(u, lost.ndim)
    moved = [a - b for a, b in zip(affine(start), start, strict=True)]
    flat = packing.pack(moved)
    residual = (scaled_norms(flat) / math.sqrt(flat.shape[1])).view(lost.shape)
    u = [torch.where(as_wide(lost, a), b, a) for a, b in zip(u, start, strict=True)]
    return u, dataclasses.replace(
        solution,
        value=u[0] if isinstance(solution.value, Tensor) else u,
        result=solution.result.masked_fill(lost, int(Result.stalled)),
        residual=torch.where(lost, residual, solution.residual),
        num_evals=solution.num_evals + 1,
        rows_evaluated=solution.rows_evaluated + packing.num_rows,
    )


def _by_sample(solution: Solution, shape: torch.Size) -> Solution:
    """Give every sample the residual, verdict and steps of the system it belongs to."""
    return dataclasses.replace(
        solution,
        residual=_spread(solution.residual, shape),
        result=_spread(solution.result, shape),
        num_steps=_spread(solution.num_steps, shape),
    )


def _spread(part: Tensor, shape: torch.Size) -> Tensor:
    return part.view((*part.shape, *[1] * (len(shape) - part.ndim))).expand(shape)


def record_evidence(u: list[Tensor], solution: Solution, context: SolveContext) -> Solution:
    """Append the evidence to the context, in the structure of the state where it is known."""
    if context.structure is not None:
        value = pytree.tree_unflatten(u, context.structure)
        solution = dataclasses.replace(solution, value=value)
    context.adjoints.append(solution)
    del context.adjoints[:-KEPT]
    return solution


def preconditioned(affine: AffineMap, apply: AffineMap) -> AffineMap:
    """Turn the equation of u into one of w with u = M w, whose residual is that of u."""

    def step(w: list[Tensor]) -> list[Tensor]:
        u = apply(w)
        return [a + (b - c) for a, b, c in zip(w, affine(u), u, strict=True)]

    return step


def on_leaves(precondition: Preconditioner, context: SolveContext) -> AffineMap:
    """Turn a map of states into one of their leaves, which checks what comes back."""
    structure = context.structure
    assert structure is not None

    def apply(w: list[Tensor]) -> list[Tensor]:
        returned = precondition(pytree.tree_unflatten(w, structure))
        leaves, spec = pytree.tree_flatten(returned)
        shapes = [getattr(leaf, "shape", None) for leaf in leaves]
        if spec != structure or shapes != [x.shape for x in w]:
            raise ValueError(
                "`preconditioner` must return the structure and shapes of the cotangent: got "
                f"{spec} of {[x and tuple(x) for x in shapes]}, expected {structure} of "
                f"{[tuple(x.shape) for x in w]}."
            )
        return leaves

    return apply


def warn_of_failure(
    solution: Solution, solver: FixedPointSolver, max_steps: int, context: SolveContext
) -> None:
    """Warn once per layer and message; again if the warning filters have changed."""
    code = Result(int(solution.result[~solution.converged].mode().values))
    layer = _layer(context.f)
    name = getattr(layer, "co_qualname", None) or type(layer).__name__
    message = (
        "The gradient is approximate: the adjoint equation u = v + J^T u failed. A residual for "
        f"`{name}` stayed above the tolerance {solver.rtol:.1e} * rms(v) in {max_steps} steps of "
        f"{type(solver).__name__} (most often: {code.name}). Raise `max_steps` of `Exact`, or try "
        "its `solver='gmres'`; `solution.adjoints` has the evidence."
    )
    registry = _warned.setdefault(layer, {})
    warnings.warn_explicit(message, UserWarning, __file__, 1, registry=registry)
    registry[message, UserWarning, 1] = True  # also where the filters say "always"


def _layer(f: Any) -> Any:
    """Return what is the same object in every call of one layer: a module, or a function's code."""
    f = inspect.unwrap(f) if callable(f) else f
    while isinstance(f, functools.partial):
        f = f.func
    layer = getattr(f, "__code__", getattr(f, "__self__", f))
    try:
        _warned.get(layer)
    except TypeError:  # it cannot be hashed, or has no weak references
        return type(layer)
    return layer
