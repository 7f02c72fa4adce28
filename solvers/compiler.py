"""Keep the eager loop out of `torch.compile`, but let it compile the map inside.

After every step it reads which samples have converged, which no compiled graph can do. So the
compiler sees it as one opaque call, with one graph break whatever the number of steps, and is
switched on again inside `f`.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from solvers.torch_internals import set_eval_frame, skip_this_frame, transforms_in_force

P = ParamSpec("P")
T = TypeVar("T")
WHY = (
    "This solver, backward mode or option needs the eager loop, which depends on verdicts; "
    "docs/transforms.md says what a graph can hold."
)


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
