"""Pytrees of tensors: select rows, look at layouts, reach into what torch does not look into."""

import copy
import dataclasses
from collections import UserList
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from solvers.torch_internals import pytree
from solvers.types import Index


def in_words(spec: pytree.TreeSpec) -> str:
    """The structure of a pytree as it is written in Python, with `tensor` for each leaf."""
    return repr(pytree.tree_unflatten([_Leaf()] * spec.num_leaves, spec))


class _Leaf:
    def __repr__(self) -> str:
        return "tensor"


def is_dense(tensor: Tensor) -> bool:
    """Whether every entry has a place in memory; within a graph, which holds no other, True."""
    # Dynamo allows no look at the layout within a backward pass.
    return torch.compiler.is_compiling() or tensor.layout == torch.strided


def take_rows(tree: Any, index: Index) -> Any:
    """Keep `index` of the first dim of every tensor in a pytree; leave the rest alone."""
    return map_tensors(lambda leaf: leaf.index_select(0, index), tree)


def as_wide(mask: Tensor, leaf: Tensor) -> Tensor:
    """Reshape a mask over leading dims so that it broadcasts against a leaf."""
    return mask.reshape((*mask.shape, *[1] * (leaf.ndim - mask.ndim)))


def map_tensors(change: Callable[[Tensor], Tensor], tree: Any, within: tuple[Any, ...] = ()) -> Any:
    """Change every tensor of a pytree, also in containers that torch does not look into.

    A dataclass or a `UserDict`, for instance, is copied with other tensors in its attributes.
    `within` holds the enclosing objects, which an attribute may refer back to.
    """

    def visit(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        held = _attributes(leaf, within)
        if not tensors_of(held, (*within, leaf)):
            return leaf
        changed = copy.copy(leaf)
        for name, value in held.items():
            object.__setattr__(changed, name, map_tensors(change, value, (*within, leaf)))
        return changed

    return pytree.tree_map(visit, tree)


def tensors_of(
    tree: Any, within: tuple[Any, ...] = (), but: Callable[[Any], bool] | None = None
) -> list[Tensor]:
    """The tensors that `map_tensors` changes, in its order, but for those in what is `but`."""
    tensors = []
    for leaf in pytree.tree_leaves(tree, is_leaf=but):
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
        elif but is None or not but(leaf):
            tensors += tensors_of(_attributes(leaf, within), (*within, leaf), but)
    return tensors


def _attributes(leaf: Any, within: tuple[Any, ...]) -> dict[str, Any]:
    """Return the attributes of a container; other objects are left as they are."""
    if any(leaf is other for other in within) or isinstance(leaf, type):
        return {}
    if dataclasses.is_dataclass(leaf):
        return {field.name: getattr(leaf, field.name) for field in dataclasses.fields(leaf)}
    container = isinstance(leaf, Mapping | UserList | SimpleNamespace)
    return getattr(leaf, "__dict__", {}) if container else {}


def of_turn(turn: int | Tensor, *branches: Callable[[], Any]) -> Any:
    """What the branch of a turn returns; within a graph, where `turn` is a tensor, a choice of all.

    Each branch returns a pytree of tensors and numbers of the same structure.
    """
    if not isinstance(turn, Tensor):
        return branches[turn]()

    def choose(*options: Any) -> Tensor:
        chosen = torch.as_tensor(options[-1], device=turn.device)
        for i, option in enumerate(options[:-1]):
            chosen = torch.where(turn == i, option, chosen)
        return chosen

    return pytree.tree_map(choose, *(branch() for branch in branches))
