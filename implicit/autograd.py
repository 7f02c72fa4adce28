"""Attach a gradient to a value by plain autograd, as the implicit modes do.

`functorch.py` does so for `torch.func`; `fixed_point.py` says why there are two ways.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.compiler import uncompiled
from solvers.torch_internals import pytree
from solvers.types import State

# From the saved inputs and the output's cotangent to one cotangent (or None) per input.
VjpRule = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor | None]]


def attach_vjp(value: State, inputs: Sequence[Tensor], vjp: VjpRule) -> State:
    """Return `value` with a gradient: its cotangent v reaches `inputs` as vjp(inputs, v).

    If `vjp` is made of differentiable operations, it is differentiated in turn with
    respect to the inputs and v.
    """
    leaves, spec = pytree.tree_flatten(value)
    attached = _AttachVjp.apply(vjp, len(leaves), *leaves, *inputs)
    return pytree.tree_unflatten(list(attached), spec)


def recorded_vjp(
    fy: Sequence[Tensor], y: Sequence[Tensor], u: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Multiply u by the transpose of d fy / d y, through the graph that recorded `fy`.

    The product is None for each tensor of `y` on which nothing depends.
    """
    recorded = [i for i, leaf in enumerate(fy) if leaf.requires_grad]
    if not recorded:
        return [None] * len(y)
    return torch.autograd.grad(
        [fy[i] for i in recorded],
        list(y),
        [u[i] for i in recorded],
        retain_graph=True,
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
    )


class _AttachVjp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vjp: VjpRule, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.rule, ctx.count = vjp, count
        ctx.save_for_backward(*tensors[count:])
        # Fresh tensors, not views, so that the caller may change the value in place.
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    @uncompiled
    def backward(ctx: Any, *v: Tensor) -> Any:
        return (None, None, *(None,) * ctx.count, *ctx.rule(ctx.saved_tensors, v))
