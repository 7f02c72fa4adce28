"""`solve`, the public entry: resolve the solver, run it without gradients, judge the outcome."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from solvers.base import FixedPointSolver
from solvers.compiler import opaque
from solvers.options import options_of
from solvers.registry import SOLVERS
from solvers.solution import Solution, SolveError
from solvers.torch_internals import pytree
from solvers.types import Map, State


@opaque
@options_of(solver=SOLVERS)
@torch.no_grad()
def solve(
    f: Map,
    y0: State,
    *args: Any,
    solver: str | FixedPointSolver = "anderson",
    max_steps: int = 50,
    throw: bool = True,
    batch_dims: int = 1,
    compact: bool = True,
    independent: bool | None = None,
    scale: Any = None,
    has_aux: bool = False,
) -> Solution:
    """Find y with f(y, *args) = y for every sample of a batch, without gradients.

    Each sample stops by its own residual and is frozen from then on. With `args`, samples are taken
    to be independent: those that have stopped leave the batch, so that `f` works on the others
    only. Where `f` couples samples, as a graph layer does, pass `independent=False`: then, as
    without `args`, `f` always sees the whole batch, and a sample whose residual rises again because
    of the others resumes. (There are more parameters than our limit of eight, since
    each is a property of this one problem and most calls give none.)

    Args:
        f: The map; returns the structure, shapes and dtypes of its first argument.
        y0: First guess, a tensor or a pytree of tensors with equal leading batch dims; floating
            point, or complex, which counts as pairs of real numbers.
        *args: Per-sample tensors (leading batch dim as in `y0`), passed on to `f`.
        solver: A registered name (see `names()`) or an instance with options.
        max_steps: Budget of updates per sample, at least 0. `f` is called once more than
            that, since the point that is returned has its residual measured; and once more
            if samples may be coupled (no `args`, or tokens) and their best points stem from
            different steps.
        throw: Raise if any sample fails; otherwise the verdicts are in the `Solution`.
        batch_dims: Leading dims that index samples. 0: one unbatched state. 2: every token
            of `(B, T, D)` has its own verdict and mixing coefficients.
        compact: Let stopped samples leave the batch, where they are independent.
        independent: Whether samples cannot influence each other; None: if there are `args`.
        scale: The unit of each tensor of `y0`, in its structure: positive numbers, or tensors that
            broadcast to one sample. The solver works on y / scale, so that no tensor is lost
            beside a larger one: residuals, `rtol` and `atol` refer to that.
        has_aux: `f` returns a pair (y, aux). The solution's `aux` is that of its value, from one
            more call of `f` on the whole batch.

    Returns:
        A `Solution`: value, and per sample the residual, verdict and step count.

    Raises:
        SolveError: A sample failed and `throw` is True; carries the `Solution`.
        ValueError: Unknown solver, bad budget, or `f` changed the shape of the state.
        TypeError: `y0` holds integers, or `f` changed dtype or structure.
    """
    chosen = SOLVERS.resolve(solver)
    independent = bool(args) if independent is None else independent
    with no_loop_under_vmap("solvers.solve"):
        solution = chosen.iterate(
            first_of_pair(f) if has_aux else f,
            y0,
            args,
            max_steps=max_steps,
            batch_dims=batch_dims,
            compact=compact,
            independent=independent,
            scale=scale,
        )
    if throw:
        raise_if_failed(solution, independent)
    return with_aux(solution, f, args) if has_aux else solution


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


@contextlib.contextmanager
def no_loop_under_vmap(name: str) -> Iterator[None]:
    """Turn the error of a loop that reads its verdicts under `vmap` into advice."""
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith("vmap: "):
            raise NotImplementedError(
                f"{name} does not work under torch.vmap, whose samples have no visible verdicts. "
                "Call `implicit.fixed_point` with another backward mode, such as 'exact', or make "
                "the mapped dim part of the batch."
            ) from error
        raise


def raise_if_failed(solution: Solution, independent: bool) -> Solution:
    """Pass a solution through if every sample converged, else raise a `SolveError`."""
    if not bool(solution.converged.all()):
        error = SolveError(solution)
        if solution.result.numel() > 1 and not independent:
            error.add_note(
                "Every sample has mixing coefficients of its own. If `f` couples them, so that "
                "`y0` is one state, pass `batch_dims=0`."
            )
        raise error
    return solution
