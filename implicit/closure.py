"""Turn a map that closes over tensors into one that takes them as arguments.

Under `torch.func` transforms a custom derivative sees only its arguments, and the tensors that
`f` closes over belong to the transforms. So one call of `f` is watched to find them, and later
calls get others in their place, operation by operation. Control flow, modules and context
managers in `f` work as ever, since it is `f` itself that runs.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from solvers.types import State


class ClosedOver:
    """`f` as a map of its state and of every tensor that it reads besides.

    Args:
        f: The map y -> y.
        y: Where it is called once, to see what it reads.

    Attributes:
        consts: The tensors that `f` read, in the order of first use.
        value: What that call returned.
    """

    def __init__(self, f: Callable[[State], State], y: State):
        self.f = f
        with _Watch(y) as watch:
            self.value = f(y)
        self.consts: list[Tensor] = list(watch.found.values())
        # A parameter may be swapped for the length of a call (functional_call); then later
        # calls find another tensor under its name.
        index = {id(const): i for i, const in enumerate(self.consts)}
        self.slots = [
            (owner, name, index[id(tensor)])
            for owner, name, tensor in _parameters_of(f)
            if id(tensor) in index
        ]

    def __call__(self, y: State, consts: Sequence[Tensor]) -> State:
        """Run f(y), reading `consts` instead of the tensors found."""
        pairs = zip(self.consts, consts, strict=True)
        substitutes = {id(old): (old, new) for old, new in pairs}
        for owner, name, i in self.slots:
            current = owner[name]
            if current is not None:
                substitutes.setdefault(id(current), (current, consts[i]))
        with _Substitute(substitutes):
            return self.f(y)


class _Watch(TorchFunctionMode):
    """Collect the tensors that operations read and that no operation made."""

    def __init__(self, y: State):
        super().__init__()
        # Kept alive, so that no other tensor can take over their identities.
        self.known = {id(leaf): leaf for leaf in pytree.tree_leaves(y)}
        self.found: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) not in self.known:
                self.found[id(leaf)] = self.known[id(leaf)] = leaf
        out = func(*args, **kwargs)
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.known.setdefault(id(leaf), leaf)
        return out


class _Substitute(TorchFunctionMode):
    """Replace tensors by others in the arguments of every operation."""

    def __init__(self, substitutes: dict[int, tuple[Tensor, Tensor]]):
        super().__init__()
        self.substitutes = substitutes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, self._replace, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _replace(self, tensor: Tensor) -> Tensor:
        found = self.substitutes.get(id(tensor))
        return tensor if found is None else found[1]


def _parameters_of(f: Any) -> Iterator[tuple[Any, str, Tensor]]:
    """Parameters and buffers of the modules that `f` is, is a method of, or closes over."""
    for module in _modules_of(f, set()):
        for part in module.modules():
            for table in (part._parameters, part._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        yield table, name, tensor


def _modules_of(value: Any, seen: set[int]) -> Iterator[nn.Module]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _modules_of(part, seen)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _modules_of(part, seen)
    elif isinstance(value, dict):
        yield from _modules_of(list(value.values()), seen)
    elif callable(value):
        yield from _modules_of(getattr(value, "__self__", None), seen)
        for cell in getattr(value, "__closure__", None) or ():
            yield from _modules_of(cell.cell_contents, seen)
