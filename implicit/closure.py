"""Turn a map that closes over tensors into one that takes them as arguments.

Under `torch.func` transforms a custom derivative sees only its arguments, and the tensors that
`f` closes over belong to the transforms. So one call of `f` is watched to find them, and in later
calls others are put in their place, in the arguments of every operation. Control flow, modules
and context managers in `f` work as usual, since it is `f` itself that runs.
"""

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from solvers.torch_internals import (
    dual_level_in_force,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_current_level,
    maybe_get_level,
    pytree,
    set_fwd_grad_enabled,
    tensor_tables,
)
from solvers.types import State

# How many objects in reach of `f` are searched for modules. Modules that it calls are found anyway.
MOST_OBJECTS = 10_000

HANDED_OVER = (
    "`f` hands a tensor that it closes over to a torch.func transform of its own, under another "
    "transform. Pass that tensor in `args`, or let the function that `f` transforms close over it."
)


def closure_convert(f: Callable[[State, Any], State], y: State, args: Any) -> "ConvertedClosure":
    """Turn `f(., args)` into a map of its state and of every tensor that it reads besides.

    Args:
        f: The map (y, args) -> y.
        y: The state at which it is called once, to see what it reads.
        args: A pytree whose tensors count as read.
    """
    leaves, spec = pytree.tree_flatten(args)
    # Each tensor once, although it may stand in several places.
    given = list({id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}.values())
    called: dict[int, nn.Module] = {}
    hook = register_module_forward_pre_hook(lambda module, _: called.update({id(module): module}))
    try:
        with _Watch([y, given]) as watch, _eager(), _quiet(f):
            f(y, args)
    finally:
        hook.remove()
    consts = [*given, *watch.found.values()]
    index = {id(const): i for i, const in enumerate(consts)}
    parameters = [
        (owner, name, index[id(tensor)])
        for owner, name, tensor in _parameters_of([f, *called.values()])
        if id(tensor) in index
    ]
    return ConvertedClosure(f, leaves, spec, consts, len(given), parameters)


@dataclass(frozen=True)
class ConvertedClosure:
    """A map that takes the tensors it closes over as arguments; see `closure_convert`.

    Attributes:
        f: The map (y, args) -> y.
        leaves: Those of `args`.
        spec: The structure of `args`.
        consts: The tensors of `args`, then others that `f` read, in the order of first use.
        num_given: How many of `consts` belong to `args`.
        parameters: Where modules keep a constant: the table, the name in it, and its index. A
            parameter may be swapped for the length of a call (`functional_call`); then later
            calls find another tensor under its name.
    """

    f: Callable[[State, Any], State]
    leaves: list[Any]
    spec: pytree.TreeSpec
    consts: list[Tensor]
    num_given: int
    parameters: list[tuple[Any, str, int]]

    def __call__(self, y: State, consts: Sequence[Tensor]) -> State:
        """Run f(y, args), reading `consts` instead of the tensors found."""
        pairs = zip(self.consts, consts, strict=True)
        substitutes = {id(old): (old, new) for old, new in pairs}
        for owner, name, i in self.parameters:
            current = owner[name]
            if current is not None:
                substitutes.setdefault(id(current), (current, consts[i]))
        leaves = [
            substitutes[id(leaf)][1] if isinstance(leaf, Tensor) else leaf for leaf in self.leaves
        ]
        args = pytree.tree_unflatten(leaves, self.spec)
        try:
            with _Substitute(substitutes, y), _eager():
                return self.f(y, args)
        except RuntimeError as error:
            if "INTERNAL ASSERT FAILED" in str(error) and "functorch" in str(error):
                raise NotImplementedError(HANDED_OVER) from error
            raise


class _Watch(TorchFunctionMode):
    """Collect the tensors that operations read and that no operation returned."""

    def __init__(self, known: Any):
        super().__init__()
        self.level = maybe_current_level() or 0
        # Kept alive, so that no other tensor can take over their identities.
        self.known = {id(leaf): leaf for leaf in pytree.tree_leaves(known)}
        self.found: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) not in self.known:
                if _is_inside(leaf, self.level):
                    leaf = _unwrapped(leaf, self.level)
                if id(leaf) not in self.known:
                    self.found[id(leaf)] = self.known[id(leaf)] = leaf
        out = func(*args, **kwargs)
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.known.setdefault(id(leaf), leaf)
        return out


class _Substitute(TorchFunctionMode):
    """Replace tensors by others in the arguments of every operation."""

    def __init__(self, substitutes: dict[int, tuple[Tensor, Tensor]], y: State):
        super().__init__()
        self.level = maybe_current_level() or 0
        self.substitutes = substitutes
        self.made = WeakIdKeyDictionary({leaf: None for leaf in pytree.tree_leaves(y)})
        self.made.update({new: None for _, new in substitutes.values()})
        # Whether `f` applies transforms of its own: no operation returns the tensors they make.
        self.transforms = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, self._replace, (args, kwargs or {}))
        out = func(*args, **kwargs)
        leaves = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
        self.made.update({leaf: None for leaf in leaves})
        return out

    def _replace(self, tensor: Tensor) -> Tensor:
        found = self.substitutes.get(id(tensor))
        if found is not None:
            return found[1]
        if tensor in self.made:
            return tensor
        if _is_inside(tensor, self.level):
            self.transforms = True
            self._refuse_handing_over(tensor)
            return tensor
        if not self.transforms and _is_live(tensor):
            raise RuntimeError(
                f"`f` read a tensor of shape {tuple(tensor.shape)} here that it did not read when "
                "it was first called, at `y0`, so that its derivative would be lost. Under "
                "torch.func let `f` read all that it closes over in every call, or pass it in "
                "`args`."
            )
        return tensor

    def _refuse_handing_over(self, tensor: Tensor) -> None:
        """Raise an error if a transform inside `f` has wrapped a tensor that had to be replaced."""
        base = _unwrapped(tensor, self.level)
        if id(base) in self.substitutes and base not in self.made:
            raise NotImplementedError(HANDED_OVER)


def _is_live(tensor: Tensor) -> bool:
    """Whether a derivative or a mapped dim would be lost if the tensor were taken as a constant.

    Constants that `f` makes outside of torch's operations, as by `torch.from_numpy`, come
    wrapped by the transforms too, but carry neither; nor does a parameter that is made under
    a transform, which no one outside can ask for a gradient.
    """
    while is_functorch_wrapped_tensor(tensor):
        left = maybe_get_level(tensor) > (maybe_current_level() or 0)  # so `f` did not make it
        differentiated = tensor.requires_grad and not isinstance(tensor, nn.Parameter)
        if left or differentiated or is_batchedtensor(tensor) or _has_tangent(tensor):
            return True
        tensor = get_unwrapped(tensor)
    return _has_tangent(tensor) or (tensor.requires_grad and torch.is_grad_enabled())


def _has_tangent(tensor: Tensor) -> bool:
    if not dual_level_in_force():
        return False
    with set_fwd_grad_enabled(True):  # rules of derivatives run without
        return forward_ad.unpack_dual(tensor).tangent is not None


def _is_inside(tensor: Tensor, level: int) -> bool:
    """Whether an active transform deeper than `level` has wrapped the tensor."""
    return level < maybe_get_level(tensor) <= (maybe_current_level() or 0)


def _unwrapped(tensor: Tensor, level: int) -> Tensor:
    """Undo the wrapping of all transforms deeper than `level`."""
    while maybe_get_level(tensor) > level:
        tensor = get_unwrapped(tensor)
    return tensor


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Keep Dynamo, where it is loaded, from tracing the modes of this file."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextlib.contextmanager
def _quiet(f: Any) -> Iterator[None]:
    """Keep torch from warning that a compiled module of `f` has hooks; here they do no harm.

    Filters change only if `f` holds such a module, since a change lets old warnings show again.
    """
    compiled = getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", ())
    parts = (part for module in _modules_of(f) for part in module.modules())
    if not any(isinstance(part, compiled) for part in parts):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*there are global hooks on modules")
        yield


def _parameters_of(f: Any) -> Iterator[tuple[Any, str, Tensor]]:
    """Parameters and buffers of the modules that `f` is, is a method of, or closes over."""
    for module in _modules_of(f):
        for part in module.modules():
            for table in tensor_tables(part):
                for name, tensor in table.items():
                    if tensor is not None:
                        yield table, name, tensor


def _modules_of(f: Any) -> Iterator[nn.Module]:
    """Find modules within reach of `f`; a container of more than `MOST_OBJECTS` counts as data."""
    queue, seen, left = [f], set(), MOST_OBJECTS
    for value in queue:
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            yield value
            continue
        parts = _parts_of(value)
        if len(parts) <= left:
            left -= len(parts)
            queue.extend(parts)


def _parts_of(value: Any) -> Collection[Any]:
    """Return the objects that a partial, container, method or closure holds."""
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, dict):
        return value.values()
    if not callable(value) or isinstance(value, type):
        return ()
    held = [getattr(value, "__self__", None), *getattr(value, "__dict__", {}).values()]
    for cell in getattr(value, "__closure__", None) or ():
        # A name that gets its value later has an empty cell until then.
        with contextlib.suppress(ValueError):
            held.append(cell.cell_contents)
    return held
