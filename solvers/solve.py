"""`solve`, the public entry: resolve the solver, run it without gradients, judge the outcome."""

from typing import Any

import torch

from solvers.base import FixedPointSolver
from solvers.checks import check_callable, check_flag
from solvers.compiler import LoopName, graph_wanted, opaque, run_graph
from solvers.has_aux import first_of_pair, with_aux
from solvers.options import options_of
from solvers.registry import SOLVERS
from solvers.solution import Solution, raise_if_failed
from solvers.torch_internals import skip_this_frame
from solvers.transforms import no_loop_under_vmap
from solvers.types import Map, State


@options_of(solver=SOLVERS)
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
    loop: LoopName = "auto",
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
        *args: Per-sample tensors (leading batch dim as in `y0`), passed on to `f`, which must not
            write into them. An object whose class says `scratch = True` holds a cache: tensors
            that `f` may write into.
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
        loop: "eager" runs the loop in Python, which reads verdicts and drops stopped samples;
            "graph" compiles it, with `f`, to one program in which all samples keep their places
            (`solvers.graph`). "auto" is "graph" under `torch.compile(fullgraph=True)` and
            `torch.export`, where the solver allows it, and else "eager". In a graph that the
            caller compiles, `num_evals` and `rows_evaluated` are tensors.

    Returns:
        A `Solution`: value, and per sample the residual, verdict and step count.

    Raises:
        SolveError: A sample failed and `throw` is True; carries the `Solution`.
        ValueError: Unknown solver, bad budget, a `loop` that is unknown or cannot hold the solver,
            or `f` changed the shape of the state.
        TypeError: `y0` holds integers, or `f` changed dtype or structure.
    """
    check_callable("f", f)
    check_flag("has_aux", has_aux)
    check_flag("throw", throw)
    chosen = SOLVERS.resolve(solver)
    independent = bool(args) if independent is None else independent
    options = {
        "solver": chosen,
        "max_steps": max_steps,
        "batch_dims": batch_dims,
        "independent": independent,
        "scale": scale,
    }
    if not graph_wanted(loop, chosen):
        how = {"compact": compact, "throw": throw, "has_aux": has_aux}
        return _solve_eagerly(f, y0, args, **how, **options)
    from solvers.graph import solve_in_graph  # most programs never need it

    only_y = first_of_pair(f) if has_aux else f
    solution = run_graph(solve_in_graph, only_y, y0, args, options)
    # In the caller's grad mode, since an error within a graph leaves the mode as it is there.
    if throw:
        raise_if_failed(solution, independent)
    with torch.no_grad():
        return with_aux(solution, f, args) if has_aux else solution


skip_this_frame(solve.__wrapped__)  # type: ignore[attr-defined]


@opaque
@torch.no_grad()
def _solve_eagerly(
    f: Map,
    y0: State,
    args: tuple[Any, ...],
    *,
    solver: FixedPointSolver,
    independent: bool,
    throw: bool,
    has_aux: bool,
    **options: Any,
) -> Solution:
    only_y = first_of_pair(f) if has_aux else f
    with no_loop_under_vmap("solvers.solve"):
        solution = solver.iterate(only_y, y0, args, independent=independent, **options)
    if throw:
        raise_if_failed(solution, independent)
    return with_aux(solution, f, args) if has_aux else solution
