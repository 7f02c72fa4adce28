"""How the loop lives with `torch.compile`: it runs as it is, and the map inside is compiled.

A solve asks after every step who has converged, which no graph can hold. So a compiler sees one
opaque call (one graph break, whatever the number of steps), and gets its turn again in `f`.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

# At this level, since `torch.compiler.disable` would switch the compiler off for `f` too, and
# loads all of it when a library is imported.
from torch._C._dynamo.eval_frame import (
    _FrameAction,
    _FrameExecStrategy,
    set_code_exec_strategy,
    set_eval_frame,
)

T = TypeVar("T")


def opaque(solve: Callable[..., T]) -> Callable[..., T]:
    """Decorate a function f, ... -> T whose loop is not to be compiled, but whose `f` is."""

    @functools.wraps(solve)
    def loop(f: Callable[..., Any], *args: Any, **kwargs: Any) -> T:
        compiler = set_eval_frame(None)
        if not callable(compiler):
            set_eval_frame(compiler)
            return solve(f, *args, **kwargs)
        if torch._C._are_functorch_transforms_active():
            # Dynamo can follow neither the rules of a transform nor what comes out of them, so
            # the rest of what it was called for runs as it is: the compiler stays off.
            return solve(f, *args, **kwargs)
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
            return solve(compiled, *args, **kwargs)
        finally:
            inside[0] = False
            set_eval_frame(compiler)

    _skip(loop)
    loop._torchdynamo_disable = True  # type: ignore[attr-defined]
    loop._torchdynamo_disable_msg = "the solver's loop depends on its verdicts"  # type: ignore[attr-defined]
    return loop


def uncompiled(call: Callable[..., T]) -> Callable[..., T]:
    """Decorate what a compiler meets by another way, as in a backward pass that it calls."""

    @functools.wraps(call)
    def outside(*args: Any, **kwargs: Any) -> T:
        compiler = set_eval_frame(None)
        try:
            return call(*args, **kwargs)
        finally:
            set_eval_frame(compiler)

    _skip(outside)
    return outside


def _skip(function: Any) -> None:
    """Keep a compiler from the frame of a function, but not from those that it calls."""
    skip = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.DEFAULT)
    set_code_exec_strategy(function.__code__, skip)
