"""Derivatives of a map of several tensors by those of them that have one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from solvers.derivatives import jvp

Leaves = Sequence[Tensor]


def primals(tensors: Leaves) -> list[Tensor]:
    """Without the tangents that the rule at hand is asked to push: it is given those apart."""
    return [forward_ad.unpack_dual(tensor).primal for tensor in tensors]


def _of_some(
    f: Callable[[Leaves], list[Tensor]], tensors: Leaves, some: Sequence[bool]
) -> tuple[list[Tensor], Callable[[Leaves], list[Tensor]]]:
    """Some of the tensors, and `f` as a map of them alone.

    The others count as constants, for which operations need no derivative: integers, or the
    statistics of a BatchNorm.
    """

    def of_some(given: Leaves) -> list[Tensor]:
        rest = iter(given)
        return f([next(rest) if it else t for t, it in zip(tensors, some, strict=True)])

    return [t for t, it in zip(tensors, some, strict=True) if it], of_some


def pulled(
    f: Callable[[Leaves], list[Tensor]], tensors: Leaves, wanted: Sequence[bool], u: Leaves
) -> list[Tensor | None]:
    """Gradients of the wanted tensors for the cotangent u of their image, and None for others."""
    if not any(wanted):
        return [None] * len(tensors)
    chosen, of_chosen = _of_some(f, tensors, wanted)
    pull: Any = torch.func.vjp(of_chosen, chosen)[1]
    rest = iter(pull(list(u))[0])
    return [next(rest) if it else None for it in wanted]


def pushed(
    f: Callable[[Leaves], list[Tensor]],
    tensors: Leaves,
    tangents: Sequence[Tensor | None],
    like: Leaves,
) -> list[Tensor]:
    """The tangent of f(tensors), which has the shapes of `like`; None stands for zero."""
    moving = [t is not None for t in tangents]
    if not any(moving):
        return [torch.zeros_like(leaf) for leaf in like]
    chosen, of_chosen = _of_some(f, tensors, moving)
    return list(jvp(of_chosen, chosen, [t for t in tangents if t is not None]))


def zeros_for(tensors: Leaves, given: Sequence[Tensor | None]) -> list[Tensor]:
    """What is given, and zeros where nothing is."""
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, given, strict=True)]


def to_front(info: Any, dims: Sequence[int | None], tensors: Leaves, expand: int) -> list[Tensor]:
    """Mapped dims first; the first `expand` tensors get one if they have none."""
    moved = []
    for i, (dim, tensor) in enumerate(zip(dims, tensors, strict=True)):
        if dim is not None:
            tensor = tensor.movedim(dim, 0)
        elif i < expand:
            tensor = tensor.expand(info.batch_size, *tensor.shape)
        moved.append(tensor)
    return moved
