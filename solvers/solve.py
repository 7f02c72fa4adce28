"""`solve`, the public entry: resolve the solver, run it without gradients, judge the outcome."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from solvers.base import FixedPointSolver
from solvers.compiler import opaque
from solvers.options import options_of
from solvers.registry import SOLVERS
from solvers.solution import Solution, SolveError
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
) -> Solution:
    """Find y with f(y, *args) = y for every sample of a batch, without gradients.

    Each sample stops by its own residual and is frozen from then on. Given `args`, samples
    that have stopped also leave the batch, so that `f` works on the others only. Without
    `args`, `f` always sees the whole batch, and a sample whose residual rises again because
    `f` couples it to others resumes.

    Args:
        f: The map; returns the structure, shapes and dtypes of its first argument.
        y0: First guess, a tensor or a pytree of tensors with equal leading batch dims.
        *args: Per-sample tensors (leading batch dim as in `y0`), passed on to `f`.
        solver: A registered name (see `names()`) or an instance with options.
        max_steps: Budget of updates per sample, at least 0. `f` is called once more than
            that, since the point that is returned has its residual measured; and once more
            if samples may be coupled (no `args`, or tokens) and their best points stem from
            different steps.
        throw: Raise if any sample fails; otherwise the verdicts are in the `Solution`.
        batch_dims: Leading dims that index samples. 0: one unbatched state. 2: every token
            of `(B, T, D)` has its own verdict and mixing coefficients.
        compact: Let stopped samples leave the batch.

    Returns:
        A `Solution`: value, and per sample the residual, verdict and step count.

    Raises:
        SolveError: A sample failed and `throw` is True; carries the `Solution`.
        ValueError: Unknown solver, bad budget, or `f` changed the shape of the state.
        TypeError: `y0` is not floating point, or `f` changed dtype or structure.
    """
    chosen = SOLVERS.resolve(solver)
    with no_loop_under_vmap("solvers.solve"):
        solution = chosen.iterate(
            f, y0, args, max_steps=max_steps, batch_dims=batch_dims, compact=compact
        )
    return raise_if_failed(solution) if throw else solution


@contextlib.contextmanager
def no_loop_under_vmap(name: str) -> Iterator[None]:
    """Say what to do where `vmap` hides the verdicts that a loop has to read."""
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


def raise_if_failed(solution: Solution) -> Solution:
    """Pass a solution through if every sample converged, else raise a `SolveError`."""
    if not bool(solution.converged.all()):
        raise SolveError(solution)
    return solution
