"""Explain an error of the map: how it was called, with what, and what to do next."""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solvers.torch_internals import pytree
from solvers.trees import tensors_of
from solvers.types import Map, State

HERE = Path(__file__).parent
# Characters of a description; a list of numbers, which should be a tensor, has many more.
LONGEST = 300


def explain(error: Exception, f: Map | None, state: State, args: tuple[Any, ...]) -> None:
    """Add to an error of a first call `f(state, *args)` how `f` is called, and what it got."""
    if isinstance(error, TypeError) and not _takes(f, state, args):
        what = f": {described(*args)}" if args else ""
        error.add_note(
            "`f` is called as f(y, *args), where `args` is all that follows `y0` without a "
            f"keyword. Here that is {len(args)} of them{what}. Pass what `f` takes besides y."
        )
        return
    if _is_ours(error):
        return
    also = f" and args = {described(*args)}" if args else ""
    error.add_note(f"`f` got y = {described(state)}{also}. {_advice(error, f, state, args)}")


def _is_ours(error: Exception) -> bool:
    """Whether an error was raised by this package, around the map, and has said what is wrong."""
    if not isinstance(error, TypeError | ValueError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).parent == HERE


def _advice(error: Exception, f: Map | None, state: State, args: tuple[Any, ...]) -> str:
    """What to do about an error that was raised within the map."""
    tensors = [*tensors_of((state, args)), *_weights(f)]
    if len(devices := {str(tensor.device) for tensor in tensors}) > 1:
        return (
            f"These and the weights of `f` are on {' and '.join(sorted(devices))}: move all to "
            "one device, by `.to(y0.device)`."
        )
    for i, arg in enumerate(args):
        if isinstance(error, RuntimeError) or isinstance(arg, Tensor):
            continue
        if arg is None:
            return f"`args[{i}]` is None: pass a tensor with a row per sample, or leave it out."
        if tensors_of((arg,)):
            return f"`args[{i}]` is a {type(arg).__name__}: does `f` expect its tensors one by one?"
        return f"`args[{i}]` is a {type(arg).__name__}: does `f` expect a tensor with a row each?"
    if isinstance(error, RuntimeError):
        return (
            "If it takes another shape or dtype: the state has the shape and the dtype of the "
            "first argument `y0` (or `y`). Start from one that `f` takes, or convert the weights "
            "of `f`, as `module.to(y0.dtype)` does."
        )
    return "The same call without a solver, f(y0, *args), shows the line of `f` that fails."


def _weights(f: Any) -> list[Tensor]:
    """The parameters of a map that is a module."""
    return list(f.parameters()) if isinstance(f, torch.nn.Module) else []


def _takes(f: Map | None, state: State, args: tuple[Any, ...]) -> bool:
    """Whether the signature of `f`, as far as it is known, takes this call."""
    try:
        signature = inspect.signature(getattr(f, "forward", f))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(state, *args)
    except TypeError:
        return False
    return True


def described(*parts: Any) -> str:
    """Pytrees in words: tensors by dtype and shape, and by device if it is not the CPU."""
    whole = ", ".join(repr(pytree.tree_map(_Word, part)) for part in parts)
    return whole if len(whole) <= LONGEST else f"{whole[:LONGEST]} ..."


class _Word:
    """What stands for a leaf."""

    def __init__(self, leaf: Any):
        self.leaf = leaf

    def __repr__(self) -> str:
        leaf = self.leaf
        if isinstance(leaf, Tensor):
            where = "" if leaf.is_cpu else f" on {leaf.device}"
            return f"{str(leaf.dtype).removeprefix('torch.')}{[*leaf.shape]}{where}"
        plain = leaf is None or isinstance(leaf, bool | int | float | complex | str)
        if not plain and (tensors := tensors_of(leaf)):
            return f"{type(leaf).__name__}({described(*tensors)})"
        return repr(leaf)[:40] if plain else type(leaf).__name__
