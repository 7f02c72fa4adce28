"""The RMS norm, whose gradient on a CPU takes few operations.

Legend: D width of a vector.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from solvers.torch_internals import (
    FakeTensor,
    dual_level_in_force,
    is_tracing,
    layer_norm_backward,
    modes_disabled,
    transforms_in_force,
)


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Divide each vector by its root mean square.

    On the CPU torch has no kernel for it, but six operations, and 25 for the gradient. Full
    precision takes fewer there, unless something transforms or compiles them.

    Args:
        x: Shape (..., D).
        weight: Shape (D,); None: ones.
        eps: Added to the mean square. None: the precision of the dtype.

    References:
        B. Zhang, R. Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019.
    """
    record = torch.is_grad_enabled()
    # An inference tensor can be an input of recorded operations, but not be kept for the gradient.
    ours = is_plain(x) and not (record and x.is_inference())
    if not ours or (weight is not None and weight.dtype != x.dtype):
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    if record:
        return _RMSNorm.apply(x, weight, eps)
    return _normalised(x, weight, eps)[0]


def is_plain(x: Tensor) -> bool:
    """Whether this is a tensor of full precision on a CPU that nothing transforms or traces.

    It may be fake, so that a plan of a training step finds what the step keeps.
    """
    if type(x) not in (Tensor, FakeTensor) or not x.is_cpu or x.dtype not in _PRECISE:
        return False
    traced = torch.compiler.is_compiling() or is_tracing()
    return not (traced or transforms_in_force() or dual_level_in_force())


_PRECISE = torch.float32, torch.float64


@functools.lru_cache(maxsize=16)
def kept(make: Callable[..., Any], *args: Any) -> Any:
    """Ordinary tensors that `make` makes of these arguments, and that are not made again."""
    with modes_disabled(), torch.inference_mode(False), torch.no_grad():
        return make(*args)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float | None) -> Tensor:
        y, scale = _normalised(x, weight, eps)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> Any:
        x, weight, scale = ctx.saved_tensors
        if torch.is_grad_enabled() or transforms_in_force() or dual_level_in_force():
            return *_gradients(ctx, x, weight, v[0]), None
        # This kernel is told the mean, and a layer norm whose mean is 0 is an RMS norm. What it
        # takes away because a mean depends on x is added again.
        D, wanted = x.shape[-1], (True, weight is not None, False)
        dx, dw, _ = layer_norm_backward(
            v[0].contiguous(), x, (D,), torch.zeros_like(scale), scale, weight, None, wanted
        )
        total = v[0].sum(-1) if weight is None else v[0] @ weight
        return dx.add_(total.unsqueeze(-1).mul_(scale), alpha=1 / D), dw, None


def _gradients(ctx: Any, x: Tensor, weight: Any, v: Tensor) -> Iterator[Tensor | None]:
    """The gradients by recorded operations, which may be differentiated in turn."""
    needed, create = ctx.needs_input_grad[:2], torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, as the hooks of these tensors are called for the gradients that are returned.
        x, weight = x.view_as(x), None if weight is None else weight.view_as(weight)
        y = F.rms_norm(x, x.shape[-1:], weight, ctx.eps)
    wanted = [given for given, need in zip((x, weight), needed, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, v, create_graph=create))
    return (next(found) if need else None for need in needed)


def _normalised(x: Tensor, weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    """The norm, and what each vector was multiplied by, shape (..., 1)."""
    size, value = torch.linalg.vector_norm(x, dim=-1, keepdim=True), eps
    if value is None:
        value = torch.finfo(x.dtype).eps
    # A tensor, which takes longer to make than to add, saves an operation.
    epsilon = kept(_scalar, value, x.dtype) if type(x) is Tensor else x.new_full((), value)
    scale = torch.addcmul(epsilon, size, size, value=1 / x.shape[-1]).rsqrt_()
    y = x * scale
    return y if weight is None else y.mul_(weight), scale


def _scalar(value: float, dtype: torch.dtype) -> Tensor:
    return torch.full((), value, dtype=dtype, device="cpu")
