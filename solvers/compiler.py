"""Which loop a solve runs in, and how the eager one stays out of `torch.compile`.

The loop of `solvers.graph` is part of a graph. The eager one cannot be: after every step it reads
which samples have converged. So the compiler sees it as one opaque call, with one graph break
whatever the number of steps, and is switched on again inside `f`.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar, cast

import torch

from solvers.torch_internals import (
    compiled_with_constants,
    one_graph_asked_for,
    set_eval_frame,
    skip_this_frame,
    transforms_in_force,
)
from solvers.trees import is_dense, tensors_of
from solvers.types import Map, State

if TYPE_CHECKING:
    from solvers.base import FixedPointSolver
    from solvers.solution import Solution

P = ParamSpec("P")
T = TypeVar("T")
WHY = (
    "This solver, backward mode or option needs the eager loop, which depends on verdicts; "
    "docs/transforms.md says what a graph can hold."
)
LoopName: TypeAlias = Literal["auto", "eager", "graph"]
LOOPS = ("auto", "eager", "graph")
# Graphs of one map, solver and mode: dtypes, structures, a first and then any batch size.
GRAPHS_EACH = 64


def graph_wanted(
    loop: LoopName, solver: "FixedPointSolver", able: bool = True, mode: object = None
) -> bool:
    """Whether a solve runs in the loop of `solvers.graph`.

    Args:
        loop: What the caller asks for.
        solver: The solver.
        able: Whether a graph can hold the backward mode.
        mode: The backward mode.

    Raises:
        ValueError: An unknown loop, or a graph cannot hold this solver, mode or transform.
    """
    if loop not in LOOPS:
        raise ValueError(f"`loop` must be one of {', '.join(map(repr, LOOPS))}: got {loop!r}.")
    if loop == "graph":
        solver.check_graph()
        if not able:
            raise ValueError(
                f"{type(mode).__name__} needs more of the solve than a graph can hold. Use another "
                "backward mode there, such as 'exact', or pass `loop='eager'`."
            )
        if not torch.compiler.is_compiling() and transforms_in_force():
            raise ValueError(
                "`loop='graph'` does not work under torch.func, whose transforms cannot enter a "
                "graph. Pass `loop='eager'`, or leave it out."
            )
        return True
    able = able and not (solver.whole or solver.calls_map)
    return loop == "auto" and able and one_graph_asked_for()


def run_graph(
    solve: Callable[..., "Solution"], f: Map, y0: State, args: tuple[Any, ...], options: Any
) -> "Solution":
    """Call a function that solves in a graph: as part of the graph that is traced, or its own."""
    if torch.compiler.is_compiling():
        return solve(f, y0, args, **options)
    how = repr(options["solver"]), repr(options.get("mode"))
    _refuse_sparse(y0=y0, args=args, scale=options.get("scale"))
    compiled = _compiled(solve, _which(f), *how)
    try:
        solution = compiled_with_constants(compiled, f, y0, args, **options)
    except Exception as error:
        if "sparse Tensor" in str(error):  # a closure is looked into by Dynamo alone
            raise TypeError(
                "`loop='graph'` holds dense tensors only, but `f` uses or returns a sparse one. "
                "Call `.to_dense()` on it; or pass `loop='eager'`, where `f` may use a sparse "
                "tensor, but not return one."
            ) from error
        if type(error).__module__.startswith("torch._") or "FakeTensor" in str(error):
            _call_eagerly(f, y0, args, options)
            error.add_note(
                "`loop='graph'` traces `f` and the solver: neither may branch on the values of "
                "tensors, and with backward mode 'exact' `f` must write `W.t()` where `W.T` or "
                "`W.mT` fails by \"Expected FakeTensor\". `loop='eager'` has no such limits."
            )
        raise
    counts = {name: int(getattr(solution, name)) for name in ("num_evals", "rows_evaluated")}
    return dataclasses.replace(solution, **counts)


@torch.no_grad()
def _call_eagerly(f: Map, y0: State, args: tuple[Any, ...], options: Any) -> None:
    """Raise the plain error of a map that fails without a compiler as well."""
    from solvers.counted_map import CountedMap
    from solvers.packing import StatePacking

    called = CountedMap(f, args, StatePacking(y0, options["batch_dims"], options["scale"]))
    called.take(called.evaluate(y0))


def _refuse_sparse(**given: Any) -> None:
    """Raise a TypeError for a sparse tensor, at which the compiler would fail."""
    for name, tree in given.items():
        for tensor in tensors_of(tree):
            if not is_dense(tensor):
                also = ", or pass `loop='eager'`, which takes it" if name == "args" else ""
                raise TypeError(
                    f"`{name}` must be dense with `loop='graph'`: got {tensor.layout}. Call "
                    f"`.to_dense()` on it{also}."
                )


@functools.lru_cache(maxsize=256)
def _compiled(
    solve: Callable[..., "Solution"], f: Hashable, solver: str, mode: str
) -> Callable[..., "Solution"]:
    """The function as one graph of its own for each map, solver and mode.

    Otherwise torch would search all of them at each call, and refuse to make more than eight.
    """
    alone: Any = {"isolate_recompiles": True, "recompile_limit": GRAPHS_EACH}
    # The loop itself in C++ as well: Python's takes twice the time where `f` is small.
    return torch.compile(solve, fullgraph=True, options={"cpp_wrapper": True}, **alone)


def _which(f: Any) -> Hashable:
    """What tells maps apart: the code of a function, whatever it closes over, or the object."""
    while isinstance(f, functools.partial) or hasattr(f, "__wrapped__"):
        f = f.func if isinstance(f, functools.partial) else f.__wrapped__
    code = getattr(f, "__code__", None)
    return (code, id(getattr(f, "__self__", None))) if code else (type(f), id(f))


def opaque(solve: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that its loop is not compiled, but its first argument `f` is."""
    call: Callable[..., T] = solve

    @functools.wraps(solve)
    def loop(f: Callable[..., Any], *args: Any, **kwargs: Any) -> T:
        compiler = set_eval_frame(None)
        if not callable(compiler):
            set_eval_frame(compiler)
            return call(f, *args, **kwargs)
        if transforms_in_force():
            # Dynamo can trace neither the rules of a transform nor the tensors that they return.
            # So the compiler stays off for the rest of the call that it was to compile.
            return call(f, *args, **kwargs)
        inside = [True]

        @functools.wraps(f)
        def compiled(*args: Any) -> Any:
            # A backward pass may call this after the solve has returned.
            set_eval_frame(compiler if inside[0] else None)
            try:
                return f(*args)
            finally:
                set_eval_frame(None)

        try:
            return call(compiled, *args, **kwargs)
        finally:
            inside[0] = False
            set_eval_frame(compiler)

    skip_this_frame(loop)
    loop._torchdynamo_disable = True  # type: ignore[attr-defined]
    loop._torchdynamo_disable_msg = WHY  # type: ignore[attr-defined]
    return cast(Callable[P, T], loop)


def uncompiled(call: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that is never compiled, such as a backward pass of compiled code."""

    @functools.wraps(call)
    def outside(*args: P.args, **kwargs: P.kwargs) -> T:
        compiler = set_eval_frame(None)
        try:
            return call(*args, **kwargs)
        finally:
            set_eval_frame(compiler)

    skip_this_frame(outside)
    return outside
