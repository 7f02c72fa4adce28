"""Spectral normalisation: an upper bound, on the linear map that a layer really is."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import implicit
from implicit.diagnostics.normalise import cached_weights, spectral_normalise
from implicit.diagnostics.spectral import spectral_radius


def norm(weight: Tensor) -> float:
    return torch.linalg.matrix_norm(weight.flatten(1), 2).item()


def linear(*singular: float) -> nn.Linear:
    """A square layer with these singular values."""
    g = torch.Generator().manual_seed(0)
    size = len(singular)
    left, right = (
        torch.linalg.qr(torch.randn(size, size, generator=g, dtype=torch.float64))[0]
        for _ in range(2)
    )
    layer = nn.Linear(size, size).double()
    with torch.no_grad():
        layer.weight.copy_(left @ torch.diag(torch.tensor(singular).double()) @ right)
    return layer


def parts(layer: nn.Module) -> tuple[list[nn.Module], nn.Parameter]:
    """The parametrizations of a layer's weight, and the parameter behind them."""
    kept: Any = layer.parametrizations
    return list(kept["weight"]), kept["weight"].original


def operator(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The dense matrix of a layer without bias."""
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(layer, zero)
    return matrix.reshape(-1, zero.numel())  # type: ignore[union-attr]


@pytest.mark.parametrize("bound", [0.5, 0.95, 2])
@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (1, 4)])
def test_a_large_weight_gets_the_bound_and_keeps_its_direction(
    shape: tuple[int, int], bound: float
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0]).double()
    nn.init.normal_(layer.weight, std=3)
    before = layer.weight.detach().clone()
    assert spectral_normalise(layer, bound) is layer
    assert norm(layer.weight) == pytest.approx(bound, rel=1e-12)
    assert torch.allclose(layer.weight * norm(before) / bound, before)


@pytest.mark.parametrize("singular", [(0.9, 0.5, 0.1), (0.0, 0.0), (0.95, 0.95)])
def test_a_weight_within_the_bound_is_left_alone(singular: tuple[float, ...]) -> None:
    layer = linear(*singular)
    before = layer.weight.detach().clone()
    spectral_normalise(layer, 0.95 + 1e-12)
    assert torch.equal(layer.weight, before)
    layer.weight.square().sum().backward()
    gradient = parts(layer)[1].grad
    assert gradient is not None
    assert gradient.isfinite().all()


@pytest.mark.parametrize("singular", [(3.0, 1.0, 0.2), (0.5, 0.3, 0.2), (2.0, 2.0, 2.0)])
def test_gradient_passes_through_the_norm(singular: tuple[float, ...]) -> None:
    layer = spectral_normalise(linear(*singular))
    (bound,), original = parts(layer)
    if len(set(singular)) > 1:
        assert torch.autograd.gradcheck(bound, (original,))
        assert torch.autograd.gradgradcheck(bound, (original,))
    (gradient,) = torch.autograd.grad(layer.weight.sum(), original)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("layer", "shape", "kernel"),
    [
        (nn.Conv1d(4, 6, 3, padding=1, bias=False), (4, 7), 3),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), (4, 5, 5), 9),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (4, 5, 5), 9),
        (nn.Conv2d(3, 5, 1, bias=False), (3, 4, 4), 1),
        (nn.Conv3d(2, 2, 2, stride=2, bias=False), (2, 4, 4, 4), 1),
        (nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), (4, 7), 3),
        (nn.ConvTranspose2d(4, 3, 2, stride=2, bias=False), (4, 3, 3), 1),
        (nn.ConvTranspose3d(2, 2, 2, bias=False), (2, 2, 2, 2), 8),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_convolution_stretches_within_the_documented_factor(
    layer: nn.Module, shape: tuple[int, ...], kernel: int
) -> None:
    """`kernel` is how many patches an entry is part of: 1 where they do not overlap."""
    layer = copy.deepcopy(layer).double()
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    spectral_normalise(layer, 0.8)
    found = torch.linalg.matrix_norm(operator(layer, shape), 2).item()
    assert found <= 0.8 * math.sqrt(kernel) * (1 + 1e-9)
    if kernel == 1:
        assert found == pytest.approx(0.8)
    blocks = layer.weight.reshape(layer.groups, layer.weight.shape[0] // layer.groups, -1)  # type: ignore
    for block in blocks:
        assert norm(block) == pytest.approx(0.8)


def test_a_composition_with_lipschitz_activations_contracts() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8), nn.ReLU()).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=2)
    spectral_normalise(module, 0.9)
    y = 0.1 * torch.randn(20, 8, dtype=torch.float64)
    assert (spectral_radius(module, y).radius <= 0.81).all()
    jacobian = torch.func.vmap(torch.func.jacrev(module))(y)
    assert (torch.linalg.matrix_norm(jacobian, 2) <= 0.81).all()


def test_it_holds_through_training_with_the_same_parameters() -> None:
    layer = linear(0.5, 0.4)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.5)
    spectral_normalise(layer, 0.95)
    before = layer.weight.detach().clone()
    for _ in range(10):
        optimiser.zero_grad()
        (-layer.weight.sum()).backward()
        optimiser.step()
        assert norm(layer.weight) <= 0.95 * (1 + 1e-12)
    assert (layer.weight - before).norm() > 0.1


def test_weight_is_a_pure_function_saved_loaded_copied_and_removed() -> None:
    layer = spectral_normalise(linear(3.0, 1.0))
    first = layer.weight.detach().clone()
    layer(torch.ones(1, 2, dtype=torch.float64))
    assert torch.equal(layer.weight, first)
    assert torch.equal(layer.eval().weight, first)
    assert torch.equal(copy.deepcopy(layer).weight, first)
    other = spectral_normalise(linear(1.0, 1.0))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, first)
    assert "parametrizations.weight.original" in layer.state_dict()
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(layer.weight, first)
    layer.weight.data.mul_(9)
    assert norm(spectral_normalise(layer).weight) == pytest.approx(0.95)


def test_assigning_a_weight_sets_the_parameter() -> None:
    layer = spectral_normalise(linear(1.0, 1.0))
    layer.weight = 7 * torch.eye(2, dtype=torch.float64)
    assert torch.allclose(layer.weight, 0.95 * torch.eye(2, dtype=torch.float64))


def test_only_linear_and_convolution_weights_are_touched() -> None:
    module = nn.ModuleDict(
        {"a": nn.Linear(2, 2), "b": nn.Embedding(3, 2), "c": nn.LayerNorm(2), "d": nn.GRU(2, 2)}
    )
    module["again"] = module["a"]
    spectral_normalise(module)
    touched = {name for name, layer in module.items() if parametrize.is_parametrized(layer)}
    assert touched == {"a", "again"}
    assert len(parts(module["a"])[0]) == 1


def test_low_precision_is_measured_in_float32() -> None:
    layer = nn.Linear(64, 64).bfloat16()
    nn.init.normal_(layer.weight)
    spectral_normalise(layer, 0.5)
    assert layer.weight.dtype == torch.bfloat16
    assert norm(layer.weight.float()) == pytest.approx(0.5, rel=1e-3)
    mixed = spectral_normalise(nn.Linear(64, 64), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(mixed.weight) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("mode", implicit.backward_modes())
def test_cached_weights_keep_the_gradient_of_a_fixed_point(mode: str) -> None:
    """A bare `parametrize.cached()` leaves the parameter without any."""
    torch.manual_seed(0)
    layer = spectral_normalise(linear(3.0, 1.0, 0.5), 0.9)
    _, original = parts(layer)
    x = torch.randn(2, 3, dtype=torch.float64)

    def gradient() -> Tensor:
        s = implicit.fixed_point(
            lambda y, x: torch.tanh(layer(y) + x), torch.zeros_like(x), x,
            solver="broyden", backward=mode, throw=False,
        )  # fmt: skip
        return torch.autograd.grad(s.value.square().sum(), original)[0]

    plain = gradient()
    with cached_weights(layer):
        cached = gradient()
        assert layer.weight is layer.weight
    assert torch.allclose(cached, plain, rtol=1e-10)
    assert layer.weight is not layer.weight


@pytest.mark.parametrize("bound", [0, -1.0, math.inf, math.nan, "1", True])
def test_bad_bounds_are_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="`bound` must be finite and above 0, got"):
        spectral_normalise(nn.Linear(2, 2), bound)


def test_modules_that_cannot_be_normalised_are_refused_whole() -> None:
    with pytest.raises(ValueError, match="ReLU has no linear or convolution layer"):
        spectral_normalise(nn.ReLU())
    module = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2))
    with pytest.raises(ValueError, match="Layer '1' is not initialised yet"):
        spectral_normalise(module)
    assert not parametrize.is_parametrized(module[0])
    with pytest.raises(ValueError, match=r"This layer is normalised already.*remove_param"):
        spectral_normalise(spectral_normalise(nn.Linear(2, 2)))
