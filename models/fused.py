"""Norms, rotary positions and squared ReLU in few passes over memory, forward and backward.

On a CPU these operations of a block take as long as their tensors take to read and write, and
autograd reads and writes many more than their gradients need. Here both passes are written by hand
where `is_fused` allows it. What they compute is said by plain operations of torch, the reference,
which take their place everywhere else, and where a gradient is itself differentiated.

Legend: B batch, T tokens, D width, H heads, K width of a head.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from models.rotary import Rotary, rotary_at, rotate
from solvers.torch_internals import dual_level_in_force, transforms_in_force

_PRECISE = torch.float32, torch.float64
_PLAIN = Tensor, nn.Parameter


def is_fused(x: Tensor, weight: Tensor | None = None) -> bool:
    """Whether the passes written by hand are used for a tensor, and for the weight of a norm.

    They are for ordinary tensors of full precision on a CPU. Compilers fuse the reference
    themselves, transforms of `torch.func` and forward mode need its operations, and elsewhere
    torch has kernels that are as fast.
    """
    if torch.compiler.is_compiling() or not x.is_cpu or x.dtype not in _PRECISE:
        return False
    if type(x) not in _PLAIN or transforms_in_force() or dual_level_in_force():
        return False
    return weight is None or (weight.dtype == x.dtype and type(weight) in _PLAIN)


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Divide each vector by its root mean square.

    Args:
        x: Shape (..., D).
        weight: Shape (D,); None: ones.
        eps: Added to the mean square. None: the precision of the dtype.

    References:
        B. Zhang, R. Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019.
    """
    if not is_fused(x, weight):
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    if torch.is_grad_enabled():
        return _RmsNorm.apply(x, weight, eps)
    return _normalised(x, weight, eps)[0]


def squared_relu(x: Tensor) -> Tensor:
    """Square the positive entries, and set the others to zero; any shape."""
    if not is_fused(x):
        positive = F.relu(x)
        return positive * positive
    if torch.is_grad_enabled():
        return _SquaredRelu.apply(x)[0]
    positive = F.relu(x)
    return positive.mul_(positive)


def rotated_heads(qkv: Float[Tensor, "B T 3 H K"], rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of attention, of which queries and keys are normalised and rotated.

    Args:
        qkv: All three.
        rotary: The factors of the positions, of which one row may do for all sequences.

    Returns:
        Three tensors of shape (B, H, T, K).
    """
    if not is_fused(qkv, rotary[0]):
        return _plain_heads(qkv, *rotary)
    if torch.is_grad_enabled():
        return _Heads.apply(qkv, *rotary)
    return _views(qkv, _heads(qkv, *rotary)[0])


def rotary_from_start(length: int, like: Tensor, base: float) -> Rotary:
    """The factors of the positions from 0 to `length` - 1; see `rotary_at`.

    On a CPU those of a few lengths are kept, since every block needs the same in every pass.
    """
    if is_fused(like):
        return _kept_rotary(length, like.shape[-1], like.dtype, base, torch.get_default_dtype())
    return rotary_at(torch.arange(length, device=like.device)[None], like, base)


@functools.lru_cache(maxsize=8)
def _kept_rotary(
    length: int, width: int, dtype: torch.dtype, base: float, angles: torch.dtype
) -> Rotary:
    """The factors; `angles` is the default dtype, in which angles are computed."""
    with torch.inference_mode(False), torch.no_grad():
        position = torch.arange(length, device="cpu")[None]
        return rotary_at(position, torch.empty(width, dtype=dtype, device="cpu"), base)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float | None) -> Tensor:
        y, scale = _normalised(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (g,), (x, weight, scale) = grad_outputs, ctx.saved_tensors
        D = x.shape[-1]
        if _by_reference():
            return *_recorded(
                lambda x, w: F.rms_norm(x, (D,), w, ctx.eps), ctx, (x, weight), g
            ), None
        # This kernel is told the mean, and a layer norm whose mean is 0 is an RMS norm. Only what
        # it takes away since a mean depends on x is to be added again.
        zero, wanted = torch.zeros_like(scale), [True, weight is not None, False]
        dx, dw, _ = torch.ops.aten.native_layer_norm_backward(
            g.contiguous(), x, [D], zero, scale, weight, None, wanted
        )
        total = g.sum(-1, keepdim=True) if weight is None else (g @ weight).unsqueeze(-1)
        return dx.add_(total.mul_(scale), alpha=1 / D), dw, None


class _SquaredRelu(torch.autograd.Function):
    """Returns the root, too: a gradient that is to be differentiated depends on x through it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        ctx.set_materialize_grads(False)
        return positive * positive, positive

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Tensor | None:
        (g, g_root), (positive,) = grad_outputs, ctx.saved_tensors
        found = None
        if g is not None:
            zero = _constant(0.0, positive.dtype)
            found = torch.addcmul(zero, g, positive, value=2)  # in one pass
        if g_root is not None:
            through = g_root * (positive > 0)
            found = through if found is None else found + through
        return found


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turned, scale = _heads(qkv, cos, sin)
        ctx.save_for_backward(qkv, cos, sin, scale)
        return _views(qkv, turned)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        qkv, cos, sin, scale = ctx.saved_tensors
        if _by_reference():
            return (*_recorded(_plain_heads, ctx, (qkv, cos, sin), *grad_outputs),)
        gq, gk, gv = (g.transpose(1, 2) for g in grad_outputs)
        g, qk = _turned(torch.stack((gq, gk), 2), cos, sin, sign=-1), qkv.narrow(2, 0, 2)
        # What is parallel to x does not change x / |x|.
        along = (g * qk).mean(-1, keepdim=True).mul_(scale).mul_(scale)
        g.addcmul_(qk, along, value=-1).mul_(scale)
        return torch.cat((g, gv.unsqueeze(2)), 2), None, None


def _by_reference() -> bool:
    """Whether a backward pass is itself differentiated or transformed."""
    return torch.is_grad_enabled() or transforms_in_force() or dual_level_in_force()


def _recorded(
    reference: Callable[..., Any], ctx: Any, given: Sequence[Tensor | None], *g: Tensor
) -> Iterator[Tensor | None]:
    """The gradients of a reference with respect to what it is given, by recorded operations."""
    needed = ctx.needs_input_grad[: len(given)]
    wanted = [x for x, need in zip(given, needed, strict=True) if need and x is not None]
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        out = reference(*given)
    found = iter(torch.autograd.grad(out, wanted, g, create_graph=create))
    return (next(found) if need else None for need in needed)


def _normalised(x: Tensor, weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    """The vectors over their root mean squares, and the factors of that, of shape (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = torch.addcmul(_constant(eps, x.dtype), norm, norm, value=1 / x.shape[-1]).rsqrt_()
    y = x * scale
    return y if weight is None else y.mul_(weight), scale


@functools.cache
def _constant(eps: float | None, dtype: torch.dtype) -> Tensor:
    """The epsilon as a tensor, kept because making one takes several times as long as adding it."""
    value = torch.finfo(dtype).eps if eps is None else eps
    with torch.inference_mode(False):
        return torch.full((), value, dtype=dtype, device="cpu")


def _plain_heads(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    qk, v = qkv.split((2, 1), 2)
    qk = F.rms_norm(qk, qk.shape[-1:]).permute(2, 0, 3, 1, 4)
    q, k = rotate(qk, (cos, sin)).unbind()
    return q, k, v.squeeze(2).transpose(1, 2)


def _heads(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys as `rotated_heads` returns them, shape (B, T, 2, H, K); and their factors.

    Those are the factors of the norms, of shape (B, T, 2, H, 1).
    """
    y, scale = _normalised(qkv.narrow(2, 0, 2), None, None)
    return _turned(y, cos, sin, sign=1), scale


def _views(qkv: Tensor, turned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k = turned.transpose(1, 3).unbind(2)
    return q, k, qkv.select(2, 2).transpose(1, 2)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """`rotate` for x of shape (B, T, 2, H, K); with a `sign` of -1 back by the same angles."""
    out, half = x * cos.unsqueeze(3).transpose(1, 2), x.shape[-1] // 2
    sin = sin.unsqueeze(3).transpose(1, 2)
    first, second = sin.narrow(-1, 0, half), sin.narrow(-1, half, half)
    out.narrow(-1, 0, half).addcmul_(x.narrow(-1, half, half), first, value=sign)
    out.narrow(-1, half, half).addcmul_(x.narrow(-1, 0, half), second, value=sign)
    return out
