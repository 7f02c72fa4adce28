"""Passes written by hand: the numbers and gradients of the plain operations, of any order."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from models import fused
from models.fused import is_fused, rms_norm, rotary_from_start, rotated_heads, squared_relu
from models.rotary import rotary_at, rotate

ROTARY = rotary_at(torch.arange(2)[None], torch.empty(8, dtype=torch.float64), 100.0)
WEIGHT = torch.linspace(-1, 2, 8, dtype=torch.float64)


def heads(qkv: Tensor) -> Tensor:
    return torch.cat(rotated_heads(qkv, ROTARY), -1)


def plain_heads(qkv: Tensor) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    q, k = (rotate(F.rms_norm(part, (8,)), ROTARY) for part in (q, k))
    return torch.cat((q, k, v), -1)


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[int, ...]]] = {
    "norm": (
        lambda x: rms_norm(x, WEIGHT, 1e-3), lambda x: F.rms_norm(x, (8,), WEIGHT, 1e-3), (2, 2, 8)
    ),
    "norm without gains": (rms_norm, lambda x: F.rms_norm(x, (8,)), (3, 8)),
    "squared ReLU": (squared_relu, lambda x: F.relu(x) ** 2, (2, 4)),
    "heads": (heads, plain_heads, (1, 2, 3, 1, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numbers_and_gradients_are_the_plain_ones(name: str) -> None:
    ours, plain, shape = FUNCTIONS[name]
    # Not contiguous, as a view of a projection is not.
    whole = torch.randn(*shape[:-1], shape[-1] + 1, dtype=torch.float64)
    x = whole[..., 1:].requires_grad_()
    v = torch.randn_like(plain(x))
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-13, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-13, atol=1e-13)
    for cotangent in (v, torch.ones(()).double().expand_as(v)):
        found, wanted = (torch.autograd.grad(f(x), x, cotangent)[0] for f in (ours, plain))
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_can_be_differentiated_and_batched(name: str) -> None:
    ours, _, shape = FUNCTIONS[name]
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    assert gradcheck(ours, x, check_batched_grad=True)
    assert gradgradcheck(ours, x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_take_the_plain_operations(name: str) -> None:
    ours, plain, shape = FUNCTIONS[name]
    x, tangent = torch.randn(2, *shape, dtype=torch.float64).unbind()
    torch.testing.assert_close(jvp(ours, (x,), (tangent,)), jvp(plain, (x,), (tangent,)))
    found, wanted = (vmap(grad(lambda x, f=f: f(x).sum()))(x[None]) for f in (ours, plain))
    torch.testing.assert_close(found, wanted)


def test_gains_get_their_gradient() -> None:
    x = torch.randn(1, 2, 8, dtype=torch.float64)
    weight = WEIGHT.clone().requires_grad_()
    assert gradcheck(lambda w: rms_norm(x, w, 1e-6), weight)
    assert gradgradcheck(lambda w: rms_norm(x, w, 1e-6), weight)
    both = x.clone().requires_grad_(), weight
    assert gradgradcheck(lambda x, w: rms_norm(x, w, 1e-6), both)


def test_each_keeps_few_tensors_for_the_backward_pass() -> None:
    """What is new to autograd is held until the backward pass: at most one tensor of the size."""
    for name, most in (("norm", 0), ("squared ReLU", 1), ("heads", 1)):
        ours = FUNCTIONS[name][0]
        shape = {"norm": (64, 8), "squared ReLU": (64, 8), "heads": (4, 2, 3, 2, 8)}[name]
        sizes: dict[int, int] = {}
        x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)

        def pack(saved: Tensor, x: Tensor = x, sizes: dict[int, int] = sizes) -> Tensor:
            if saved.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
                sizes[saved.untyped_storage().data_ptr()] = saved.numel()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            out = ours(x)
        large = [size for size in sizes.values() if 2 * size >= x.numel()]
        assert len(large) <= most, (name, out.shape)


def test_kept_factors_are_those_of_the_positions() -> None:
    x = torch.empty(1, 6, 4, dtype=torch.float64)
    with torch.inference_mode():
        kept = rotary_from_start(6, x, 50.0)
    wanted = rotary_at(torch.arange(6)[None], x, 50.0)
    assert rotary_from_start(6, x, 50.0)[0] is kept[0]
    assert not kept[0].is_inference()
    torch.testing.assert_close(kept, wanted, rtol=0, atol=0)
    other = rotary_from_start(6, x, 60.0)
    assert not torch.equal(kept[0], other[0])


def test_tensors_of_half_precision_take_the_plain_operations() -> None:
    x = torch.randn(3, 8).bfloat16()
    assert not is_fused(x)
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (8,)), rtol=0, atol=0)
    assert not is_fused(x.float(), torch.ones(8, dtype=torch.float64))
    assert is_fused(x.float(), torch.nn.Parameter(torch.ones(8)))
    assert fused.squared_relu(x).dtype == torch.bfloat16
