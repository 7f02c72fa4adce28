"""Spectral radii: against dense eigenvalues, pairs included, each sample by itself."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from implicit.diagnostics.spectral import spectral_radius
from solvers.testing.problems import PROBLEMS, Problem

METHODS = pytest.mark.parametrize("method", ["arnoldi", "power"])
PRODUCTS = pytest.mark.parametrize("product", ["vjp", "jvp"])


def turn(degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def dense(jacobian: Tensor) -> Tensor:
    return torch.linalg.eigvals(jacobian).abs().amax(-1)


@PRODUCTS
@pytest.mark.parametrize("p", PROBLEMS, ids=lambda p: p.name)
def test_arnoldi_agrees_with_dense_eigenvalues(p: Problem, product: str) -> None:
    found = spectral_radius(p.f, p.y_star, *p.args, product=product)  # type: ignore[arg-type]
    assert found.radius.dtype == torch.float64
    assert torch.allclose(found.radius, dense(p.jacobian), rtol=1e-9)
    assert (found.residual < 1e-9).all()


@METHODS
@PRODUCTS
@pytest.mark.parametrize("degrees", [60, 85, 90])
def test_a_scaled_rotation_has_its_scale(degrees: float, product: str, method: str) -> None:
    """torchdeq's signed Rayleigh quotient says 0.45, 0.08 and 0.0."""
    matrix = 0.9 * turn(degrees)
    y = torch.zeros(3, 2, dtype=torch.float64)
    found = spectral_radius(lambda y: y @ matrix.T, y, product=product, method=method)  # type: ignore[arg-type]
    assert torch.allclose(found.radius, torch.full((3,), 0.9, dtype=torch.float64))


@METHODS
def test_a_dominant_pair_among_others_of_a_skewed_map(method: str) -> None:
    """The pair's basis is far from orthogonal, so that norms oscillate on their way."""
    generator = torch.Generator().manual_seed(0)
    inner = torch.diag(torch.linspace(-0.5, 0.5, 40, dtype=torch.float64))
    inner[:2, :2] = 0.9 * turn(70)
    basis = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    matrix = basis @ inner @ torch.linalg.inv(basis)
    y = torch.zeros(1, 40, dtype=torch.float64)
    found = spectral_radius(lambda y: y @ matrix.T, y, num_steps=40, method=method)  # type: ignore[arg-type]
    assert found.radius.item() == pytest.approx(0.9, rel=1e-4)
    assert found.residual.item() < 1e-2


def test_rounding_does_not_build_up() -> None:
    """With one pass of orthogonalisation the answer here is 4.1."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.diag(torch.logspace(0, -6, 30))
    matrix += torch.triu(torch.randn(30, 30, generator=generator), 1)
    found = spectral_radius(lambda y: y @ matrix.T, torch.zeros(1, 30))
    assert found.radius.item() == pytest.approx(1, rel=1e-4)


@METHODS
@pytest.mark.parametrize("values", [[0.8, -0.8, 0.1], [-0.7, 0.2, 0.1], [0.0, 0.0, 0.0]])
def test_real_eigenvalues_of_either_sign(values: list[float], method: str) -> None:
    slope = torch.tensor(values, dtype=torch.float64)
    found = spectral_radius(lambda y: slope * y, torch.ones(2, 3).double(), method=method)  # type: ignore[arg-type]
    assert torch.allclose(found.radius, slope.abs().max().expand(2))


def test_the_residual_shows_how_uncertain_the_radius_is() -> None:
    """Three eigenvalues of one modulus are too many for power iteration, and it says so."""
    matrix = 0.9 * torch.eye(3, dtype=torch.float64).roll(1, 0)

    def f(y: Tensor) -> Tensor:
        return y @ matrix.T

    y = torch.zeros(1, 3, dtype=torch.float64)
    assert spectral_radius(f, y).residual.item() < 1e-12
    assert spectral_radius(f, y).radius.item() == pytest.approx(0.9)
    assert spectral_radius(f, y, method="power").residual.item() > 0.1


def test_few_steps_leave_a_residual_that_bounds_the_error_of_a_normal_map() -> None:
    values = torch.linspace(-0.99, 0.99, 200, dtype=torch.float64)
    y = torch.zeros(1, 200, dtype=torch.float64)
    errors = []
    for num_steps in (3, 10, 30):
        found = spectral_radius(lambda y: values * y, y, num_steps=num_steps)
        nearest = (values.abs() - found.radius).abs().min()
        assert nearest <= found.residual
        errors.append(abs(float(found.radius) - 0.99))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02


@METHODS
@PRODUCTS
def test_calls_and_products_are_counted(method: str, product: str) -> None:
    calls = []

    def f(y: Tensor) -> Tensor:
        calls.append(1)
        return 0.5 * y.roll(1, -1)

    y = torch.zeros(2, 50, dtype=torch.float64)
    found = spectral_radius(f, y, num_steps=7, method=method, product=product)  # type: ignore[arg-type]
    assert found.num_evals == len(calls) == (1 if product == "vjp" else 7)
    assert found.num_products == 7


@METHODS
@PRODUCTS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_sample_touches_no_other(bad: float, product: str, method: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = 0.4 * torch.randn(5, 5, generator=generator, dtype=torch.float64)
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)

    def measure(x: Tensor) -> Tensor:
        return spectral_radius(
            lambda y, x: torch.sin(y @ weight.T + x), torch.zeros_like(x), x,
            method=method, product=product,  # type: ignore[arg-type]
        ).radius  # fmt: skip

    good = measure(x)
    x[1] = bad
    found = measure(x)
    assert found[1].isnan()
    assert torch.equal(found[[0, 2, 3]], good[[0, 2, 3]])


def test_a_sample_is_measured_alike_in_any_batch() -> None:
    p = next(p for p in PROBLEMS if p.name == "tanh")
    together = spectral_radius(p.f, p.y_star, *p.args, num_steps=3).radius
    for i in (0, 5, 16):
        alone = spectral_radius(p.f, p.y_star[i : i + 1], p.args[0][i : i + 1], num_steps=3)
        assert torch.allclose(alone.radius, together[i : i + 1], rtol=1e-10)


def test_one_row_of_coupled_tokens_is_measured_as_one() -> None:
    """A causal map is block-triangular: its radius is the largest of its tokens'."""
    slope = torch.tensor([0.2, 0.7, 0.4], dtype=torch.float64)[:, None]

    def f(y: Tensor) -> Tensor:
        return slope * y + 0.5 * (y.cumsum(1) - y)

    y = torch.zeros(2, 3, 1, dtype=torch.float64)
    assert torch.allclose(spectral_radius(f, y).radius, torch.full((2,), 0.7).double(), rtol=1e-6)
    alone = spectral_radius(lambda y: slope * y, y, batch_dims=2).radius
    assert torch.allclose(alone, slope.T.expand(2, 3))


def test_unbatched_state_tree_and_empty_batch() -> None:
    matrix = 0.9 * turn(90)
    single = spectral_radius(lambda y: y @ matrix.T, torch.zeros(2).double(), batch_dims=0)
    assert single.radius.shape == ()
    assert single.radius.item() == pytest.approx(0.9)
    p = next(p for p in PROBLEMS if p.name == "tree")
    assert torch.allclose(spectral_radius(p.f, p.y_star, *p.args).radius, dense(p.jacobian))
    for shape in ((0, 3), (2, 0)):
        empty = spectral_radius(lambda y: 0.5 * y, torch.zeros(shape))
        assert torch.equal(empty.radius, torch.zeros(shape[0]))


@METHODS
@PRODUCTS
def test_a_map_that_ignores_its_state_has_radius_zero(method: str, product: str) -> None:
    constant = torch.ones(2, 3)
    for f in (lambda y: constant, lambda y: constant * nn.Parameter(torch.ones(3))):
        found = spectral_radius(f, torch.zeros(2, 3), method=method, product=product)  # type: ignore[arg-type]
        assert torch.equal(found.radius, torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_measured_in_float32(dtype: torch.dtype) -> None:
    matrix = (0.9 * turn(85)).to(dtype)
    found = spectral_radius(lambda y: y @ matrix.T, torch.zeros(2, 2, dtype=dtype))
    assert found.radius.dtype == torch.float32
    assert torch.allclose(found.radius, torch.full((2,), 0.9), rtol=2 * torch.finfo(dtype).eps)


@PRODUCTS
def test_autocast_reaches_the_map_alone(product: str) -> None:
    weight = nn.Parameter(0.9 * turn(85).float())
    seen = []

    def f(y: Tensor) -> Tensor:
        fy = y @ weight.T
        seen.append(fy.dtype)
        return fy

    with torch.autocast("cpu", torch.bfloat16):
        found = spectral_radius(f, torch.zeros(2, 2), product=product)  # type: ignore[arg-type]
    assert set(seen) == {torch.bfloat16}
    assert found.radius.dtype == torch.float32
    assert torch.allclose(found.radius, torch.full((2,), 0.9), rtol=1e-2)


def test_autocast_does_not_reach_the_algebra() -> None:
    values = torch.linspace(-0.5, 0.9, 40)
    with torch.autocast("cpu", torch.bfloat16):
        found = spectral_radius(lambda y: values * y, torch.zeros(1, 40))
    assert found.radius.item() == pytest.approx(0.9, rel=1e-5)


@PRODUCTS
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_any_grad_mode_and_no_trace_of_it(mode: type, product: str) -> None:
    weight = nn.Parameter(0.9 * turn(85))
    y = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    with mode():
        found = spectral_radius(lambda y: y @ weight.T, y, product=product)  # type: ignore[arg-type]
    assert torch.allclose(found.radius, torch.full((2,), 0.9).double())
    assert not found.radius.requires_grad
    assert weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_start_may_be_drawn_by_the_caller() -> None:
    values = torch.linspace(-0.99, 0.99, 200, dtype=torch.float64)

    def measure(seed: int) -> float:
        return spectral_radius(
            lambda y: values * y, torch.zeros(1, 200).double(), num_steps=3,
            generator=torch.Generator().manual_seed(seed),
        ).radius.item()  # fmt: skip

    assert measure(1) == measure(1) != measure(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 1}, "`num_steps` must be an integer of at least 2, got 1"),
        ({"num_steps": 2.5}, "`num_steps` must be an integer of at least 2, got 2.5"),
        ({"method": "qr"}, "`method` must be 'arnoldi' or 'power', got 'qr'"),
        ({"product": "vpj"}, "`product` must be 'jvp' or 'vjp', got 'vpj'"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectral_radius(lambda y: y, torch.zeros(1, 2), **options)


def test_maps_without_forward_mode_are_sent_to_vjp() -> None:
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(y: Tensor) -> Tensor:
            return y / 2

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, v: Tensor) -> Tensor:
            return v / 2

    f, y = Half.apply, torch.zeros(1, 2, 4)
    assert spectral_radius(f, y).radius.item() == pytest.approx(0.5)
    with pytest.raises(NotImplementedError) as caught:
        spectral_radius(f, y, product="jvp")
    assert "operation without a forward-mode derivative" in str(caught.value)
    assert caught.value.__notes__ == ["Pass `product='vjp'`, which does without forward mode."]


def test_a_map_that_changes_its_state_is_refused() -> None:
    with pytest.raises(ValueError, match="`f` must return its input's shape"):
        spectral_radius(lambda y: y[:, :1], torch.zeros(1, 2))
    with pytest.raises(TypeError, match="must be floating point"):
        spectral_radius(lambda y: y, torch.zeros(1, 2, dtype=torch.int64))


@pytest.mark.parametrize("product", ["jvp", "vjp"])
def test_a_point_of_another_dtype_than_the_weights_is_described(product: Any) -> None:
    weight = torch.eye(3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"mat1|m1") as caught:
        spectral_radius(lambda y: y @ weight, torch.ones(2, 3), product=product)
    assert caught.value.__notes__[0].startswith("`f` got y = float32[2, 3]. ")
