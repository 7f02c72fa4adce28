"""Put a gradient onto a value: the autograd node that the implicit modes share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from solvers.compiler import uncompiled
from solvers.torch_internals import pytree
from solvers.types import State

# From the saved inputs and the output's cotangent to one cotangent (or None) per input.
Pull = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor | None]]


def graft(value: State, inputs: Sequence[Tensor], pull: Pull) -> State:
    """`value`, whose cotangent v reaches `inputs` as pull(inputs, v).

    If `pull` is made of differentiable operations, it is differentiated in turn with
    respect to the inputs and v.
    """
    leaves, spec = pytree.tree_flatten(value)
    grafted = _Graft.apply(pull, len(leaves), *leaves, *inputs)
    return pytree.tree_unflatten(list(grafted), spec)


def pull_back(
    path: Sequence[Tensor], anchor: Sequence[Tensor], u: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """J^T u with J = d path / d anchor; None where nothing depends on an anchor."""
    recorded = [i for i, leaf in enumerate(path) if leaf.requires_grad]
    if not recorded:
        return [None] * len(anchor)
    return torch.autograd.grad(
        [path[i] for i in recorded],
        list(anchor),
        [u[i] for i in recorded],
        retain_graph=True,
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
    )


class _Graft(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pull: Pull, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.pull, ctx.count = pull, count
        ctx.save_for_backward(*tensors[count:])
        # Fresh tensors, not views, so that the caller may change the value in place.
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    @uncompiled
    def backward(ctx: Any, *v: Tensor) -> Any:
        return (None, None, *(None,) * ctx.count, *ctx.pull(ctx.saved_tensors, v))
