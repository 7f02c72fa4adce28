"""Derivatives of a map of several tensors with respect to some of them, for `functorch.py`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from solvers.pushforward import pushforward

Leaves = Sequence[Tensor]


def primals(tensors: Leaves) -> list[Tensor]:
    """Strip the tangents off dual tensors: a rule of forward mode gets them as extra arguments."""
    return [forward_ad.unpack_dual(tensor).primal for tensor in tensors]


def _restricted(
    f: Callable[[Leaves], list[Tensor]], tensors: Leaves, chosen: Sequence[bool]
) -> tuple[list[Tensor], Callable[[Leaves], list[Tensor]]]:
    """Return the chosen tensors, and `f` as a map of them alone.

    The others count as constants, for which operations need no derivative: integers, or the
    statistics of a BatchNorm.
    """

    def restricted(given: Leaves) -> list[Tensor]:
        rest = iter(given)
        return f([next(rest) if it else t for t, it in zip(tensors, chosen, strict=True)])

    return [t for t, it in zip(tensors, chosen, strict=True) if it], restricted


def partial_vjp(
    f: Callable[[Leaves], list[Tensor]], tensors: Leaves, wanted: Sequence[bool], u: Leaves
) -> list[Tensor | None]:
    """Return the cotangent of each wanted tensor for the cotangent u of f(tensors), else None."""
    if not any(wanted):
        return [None] * len(tensors)
    chosen, restricted = _restricted(f, tensors, wanted)
    vjp: Any = torch.func.vjp(restricted, chosen)[1]
    rest = iter(vjp(list(u))[0])
    return [next(rest) if it else None for it in wanted]


def partial_jvp(
    f: Callable[[Leaves], list[Tensor]],
    tensors: Leaves,
    tangents: Sequence[Tensor | None],
    like: Leaves,
) -> list[Tensor]:
    """Return the tangent of f(tensors), which has the shapes of `like`; None stands for zero."""
    moving = [t is not None for t in tangents]
    if not any(moving):
        return [torch.zeros_like(leaf) for leaf in like]
    chosen, restricted = _restricted(f, tensors, moving)
    return list(pushforward(restricted, chosen, [t for t in tangents if t is not None]))


def zeros_for_none(tensors: Leaves, given: Sequence[Tensor | None]) -> list[Tensor]:
    """Replace each None by zeros of the tensor's shape."""
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, given, strict=True)]


def mapped_dims_to_front(
    info: Any, dims: Sequence[int | None], tensors: Leaves, expand: int
) -> list[Tensor]:
    """Move the dims that `vmap` maps to the front; the first `expand` tensors all get one."""
    moved = []
    for i, (dim, tensor) in enumerate(zip(dims, tensors, strict=True)):
        if dim is not None:
            tensor = tensor.movedim(dim, 0)
        elif i < expand:
            tensor = tensor.expand(info.batch_size, *tensor.shape)
        moved.append(tensor)
    return moved
