"""The norm: torch's own numbers, with and without gradients."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, vmap
from torch.nn import functional as F

from models.blocks import RMSNorm, rms_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-12, 1.0, 1e12, float("inf"), float("nan")])
def test_norm_is_that_of_torch(dtype: torch.dtype, size: float) -> None:
    x = size * torch.randn(3, 5, 8).to(dtype)
    weight = torch.randn(8).to(dtype)
    for options in ((None, None), (weight, 1e-6), (weight, None)):
        expected = F.rms_norm(x, (8,), *options)
        with torch.no_grad():
            torch.testing.assert_close(rms_norm(x, *options), expected, equal_nan=True)


def test_module_takes_the_place_of_torchs() -> None:
    ours, theirs = RMSNorm(8).double(), nn.RMSNorm(8, eps=1e-6).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(ours, x)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-14, atol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@torch.no_grad()
def test_norm_is_transformed_without_gradients() -> None:
    x, tangent = torch.randn(2, 3, 8, dtype=torch.float64).unbind()
    pushed = jvp(rms_norm, (x,), (tangent,))
    expected = jvp(lambda x: F.rms_norm(x, (8,)), (x,), (tangent,))
    torch.testing.assert_close(pushed, expected)
    module = RMSNorm(8).double()
    weights = torch.randn(4, 8, dtype=torch.float64)
    ensemble = vmap(lambda weight: functional_call(module, {"weight": weight}, (x,)))(weights)
    torch.testing.assert_close(ensemble, F.rms_norm(x, (8,), None, 1e-6) * weights[:, None])
