"""The norm: torch's own numbers and gradients, of any order and under any transform."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

from models.blocks import PlainNorm, RMSNorm, SquaredReLU
from models.norms import is_plain, rms_norm

WEIGHT = torch.linspace(-1, 2, 8, dtype=torch.float64)

# Ours, what it is, and the shape of what it is given.
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[int, ...]]] = {
    "gains": (
        lambda x: rms_norm(x, WEIGHT, 1e-3), lambda x: F.rms_norm(x, (8,), WEIGHT, 1e-3), (2, 3, 8)
    ),
    "no gains": (rms_norm, lambda x: F.rms_norm(x, (8,)), (4, 8)),
    "other dim": (
        PlainNorm(dim=-2), lambda x: F.rms_norm(x.mT, (8,), None, 1e-5).mT, (2, 8, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-12, 1.0, 1e12, float("inf"), float("nan")])
def test_norm_is_that_of_torch(dtype: torch.dtype, size: float) -> None:
    x = size * torch.randn(3, 5, 8).to(dtype)
    weight = torch.randn(8).to(dtype)
    for options in ((None, None), (weight, 1e-6), (weight, None)):
        expected = F.rms_norm(x, (8,), *options)
        with torch.no_grad():
            torch.testing.assert_close(rms_norm(x, *options), expected, equal_nan=True)
        given = x.clone().requires_grad_()
        torch.testing.assert_close(rms_norm(given, *options), expected, equal_nan=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_is_that_of_the_operations(name: str) -> None:
    ours, operations, shape = FUNCTIONS[name]
    # Not contiguous, as part of a projection is not.
    whole = torch.randn(*shape[:-1], shape[-1] + 1, dtype=torch.float64)
    x = whole[..., 1:].requires_grad_()
    y = ours(x)
    assert y.grad_fn is not None
    torch.testing.assert_close(y, operations(x))
    for v in (torch.randn_like(y), torch.ones((), dtype=y.dtype).expand_as(y)):
        found, wanted = (torch.autograd.grad(f(x), x, v)[0] for f in (ours, operations))
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_gradient_in_single_precision_at_every_size(size: float) -> None:
    x = (size * torch.randn(6, 8)).requires_grad_()
    weight, v = torch.randn(8), torch.randn(6, 8)
    found, wanted = (
        torch.autograd.grad(f, x, v)[0]
        for f in (rms_norm(x, weight, 1e-6), F.rms_norm(x, (8,), weight, 1e-6))
    )
    # Of sums of eight numbers whose order differs.
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=float(wanted.abs().max()) * 1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_differentiated_and_batched(name: str) -> None:
    ours, _, shape = FUNCTIONS[name]
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    assert gradcheck(ours, x, check_batched_grad=True)
    assert gradgradcheck(ours, x)


def test_gains_get_their_gradient() -> None:
    x, weight = torch.randn(4, 8, dtype=torch.float64), WEIGHT.clone().requires_grad_()
    assert gradcheck(lambda w: rms_norm(x, w, 1e-3), weight)
    assert gradgradcheck(lambda x, w: rms_norm(x, w, 1e-3), (x.requires_grad_(), weight))


@pytest.mark.parametrize("create_graph", [False, True])
def test_hooks_are_called_once(create_graph: bool) -> None:
    x, weight = torch.randn(4, 8, dtype=torch.float64, requires_grad=True), WEIGHT.clone()
    given = [2 * x, weight.requires_grad_()]
    for tensor in given:
        tensor.register_hook(lambda gradient: 10 * gradient)
    found, wanted = (
        torch.autograd.grad(
            norm.square().sum(), (x, weight), retain_graph=True, create_graph=create_graph
        )
        for norm in (
            rms_norm(given[0], given[1], 1e-3),
            F.rms_norm(given[0], (8,), given[1], 1e-3),
        )
    )
    torch.testing.assert_close(found, wanted)


def test_gains_are_trained_on_features_made_in_inference_mode() -> None:
    with torch.inference_mode():
        x = torch.randn(4, 8, dtype=torch.float64)
    weight = WEIGHT.clone().requires_grad_()
    found, wanted = (
        torch.autograd.grad(norm.square().sum(), weight)
        for norm in (rms_norm(x, weight, 1e-3), F.rms_norm(x, (8,), weight, 1e-3))
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_and_forward_mode(name: str) -> None:
    ours, operations, shape = FUNCTIONS[name]
    x, tangent = torch.randn(2, *shape, dtype=torch.float64).unbind()
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            expected = jvp(operations, (x,), (tangent,))
            torch.testing.assert_close(jvp(ours, (x,), (tangent,)), expected)
            with forward_ad.dual_level():
                y = ours(forward_ad.make_dual(x, tangent))
                torch.testing.assert_close(tuple(forward_ad.unpack_dual(y)), expected)
    found, wanted = (
        vmap(grad(lambda x, f=f: f(x).square().sum()))(torch.stack((x, tangent)))
        for f in (ours, operations)
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_traces_as_torchs_operations_do() -> None:
    module, x = nn.Sequential(RMSNorm(8), SquaredReLU(8, 16)), torch.randn(4, 8)
    traced: Any = torch.jit.trace(module, x)
    torch.testing.assert_close(traced(2 * x), module(2 * x))


@torch.no_grad()
def test_weights_of_an_ensemble() -> None:
    module, x = RMSNorm(8).double(), torch.randn(3, 8, dtype=torch.float64)
    weights = torch.randn(4, 8, dtype=torch.float64)
    ensemble = vmap(lambda weight: functional_call(module, {"weight": weight}, (x,)))(weights)
    torch.testing.assert_close(ensemble, F.rms_norm(x, (8,), None, 1e-6) * weights[:, None])


def test_module_takes_the_place_of_torchs() -> None:
    ours, theirs = RMSNorm(8).double(), nn.RMSNorm(8, eps=1e-6).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_other_dtypes_take_torchs_operations() -> None:
    x = torch.randn(3, 8).bfloat16()
    assert not is_plain(x)
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (8,)), rtol=0, atol=0)
    x = torch.randn(3, 8)
    with pytest.warns(UserWarning, match="Mismatch dtype"):
        y = rms_norm(x.requires_grad_(), torch.full((8,), 2.0, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, 2 * torch.autograd.grad(F.rms_norm(x, (8,)).sum(), x)[0])
