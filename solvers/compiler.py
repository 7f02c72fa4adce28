"""How the loop lives with `torch.compile`: it runs as it is, and the map inside is compiled.

A solve asks after every step who has converged, which no graph can hold. So a compiler sees one
opaque call (one graph break, whatever the number of steps), and gets its turn again in `f`.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from solvers.torch_internals import set_eval_frame, skip_this_frame, transforms_in_force

P = ParamSpec("P")
T = TypeVar("T")


def opaque(solve: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function whose loop is not to be compiled, but whose first argument `f` is."""
    call: Callable[..., T] = solve

    @functools.wraps(solve)
    def loop(f: Callable[..., Any], *args: Any, **kwargs: Any) -> T:
        compiler = set_eval_frame(None)
        if not callable(compiler):
            set_eval_frame(compiler)
            return call(f, *args, **kwargs)
        if transforms_in_force():
            # Dynamo can follow neither the rules of a transform nor what comes out of them, so
            # the rest of what it was called for runs as it is: the compiler stays off.
            return call(f, *args, **kwargs)
        inside = [True]

        @functools.wraps(f)
        def compiled(*args: Any) -> Any:
            # A backward pass may call again when this is long over.
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
    loop._torchdynamo_disable_msg = "the solver's loop depends on its verdicts"  # type: ignore[attr-defined]
    return cast(Callable[P, T], loop)


def uncompiled(call: Callable[P, T]) -> Callable[P, T]:
    """Decorate what a compiler meets by another way, as in a backward pass that it calls."""

    @functools.wraps(call)
    def outside(*args: P.args, **kwargs: P.kwargs) -> T:
        compiler = set_eval_frame(None)
        try:
            return call(*args, **kwargs)
        finally:
            set_eval_frame(compiler)

    skip_this_frame(outside)
    return outside
