"""Optimisers of deepinv as maps: its iterates, verdicts for each sample, and exact gradients."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import implicit
import solvers
from implicit import FixedPointLayer, fixed_point
from implicit.contrib import DeepinvStep

try:
    deepinv: Any = importlib.import_module("deepinv")
except (ImportError, RuntimeError):  # a torchvision of another build than torch fails as it loads
    pytest.skip(
        "needs pip install -e '.[deepinv]', with a torchvision of torch's own build",
        allow_module_level=True,
    )

OPTIMISERS = ["GD", "HQS", "MD", "PGD", "PMD", "ADMM", "DRS", "PDCP"]
L2, L1, TIKHONOV = (
    deepinv.optim.data_fidelity.L2(),
    deepinv.optim.prior.L1Prior(),
    deepinv.optim.prior.Tikhonov(),
)
EXACTLY = solvers.Anderson(rtol=1e-12, atol=1e-13)


class Blur(deepinv.physics.LinearPhysics):
    """A blur along vectors that treats each sample alone, with a strength that can be learnt."""

    def __init__(self, strength: float = 0.4):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength, dtype=torch.float64))

    def A(self, x: Tensor, **_: Any) -> Tensor:
        return x + self.strength * (x.roll(1, 1) + x.roll(-1, 1)) / 2

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        return self.A(y)


class Shrink(deepinv.optim.prior.Prior):
    """A prior that is known by its denoiser, a small network of norm below 1."""

    def __init__(self, size: int):
        super().__init__()
        self.inner = nn.Linear(size, size, dtype=torch.float64)
        self.explicit_prior = False

    def prox(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return 0.5 * x + 0.2 * torch.tanh(self.inner(x))


def model_of(name: str, **options: Any) -> Any:
    options = {"stepsize": 0.4, "lambda_reg": 0.1, "max_iter": 3, **options}
    if name == "PDCP":
        same = {"K": lambda x: x, "K_adjoint": lambda x: x, "stepsize_dual": 0.5}
        options = {**same, **options}
    prior = options.pop("prior", TIKHONOV if name in ("GD", "MD") else L1)
    return getattr(deepinv.optim, name)(data_fidelity=L2, prior=prior, **options)


@pytest.fixture
def measured() -> Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_iterates_are_those_of_deepinv(name: str, measured: Tensor) -> None:
    physics = Blur()
    model = model_of(name)
    step = DeepinvStep(model, physics)
    state = step.start(measured)
    for _ in range(3):
        state = step(state, measured)
    assert torch.equal(state[0], model(measured, physics))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_solution_is_where_deepinv_ends(name: str, measured: Tensor) -> None:
    physics = Blur()
    model = model_of(name, max_iter=300)
    step = DeepinvStep(model, physics)
    s = solvers.solve(step, step.start(measured), measured, solver=EXACTLY, max_steps=200)
    torch.testing.assert_close(s.value[0], model(measured, physics), rtol=1e-8, atol=1e-8)
    alone = solvers.solve(
        step, step.start(measured[2:3]), measured[2:3], solver=EXACTLY, max_steps=200
    )
    torch.testing.assert_close(alone.value[0], s.value[0][2:3], rtol=1e-9, atol=1e-9)


def test_samples_leave_the_batch_as_they_converge(measured: Tensor) -> None:
    step = DeepinvStep(model_of("PGD"), Blur())
    easy = measured * torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)[:, None]
    s = solvers.solve(step, step.start(easy), easy)
    assert s.converged.all()
    assert s.num_steps[3:].max() < s.num_steps[:3].min()
    assert s.rows_evaluated < s.num_evals * len(easy)


def test_gradients_reach_denoiser_physics_numbers_and_measurement(measured: Tensor) -> None:
    torch.manual_seed(0)
    physics, prior = Blur(), Shrink(8)
    model = model_of("PGD", prior=prior, unfold=True, trainable_params=["stepsize"])
    model = model.double()
    step = DeepinvStep(model, physics)
    layer = FixedPointLayer(step, solver=EXACTLY, backward=implicit.Exact(solver=EXACTLY))
    y = measured.clone().requires_grad_()

    def loss() -> Tensor:
        return (layer(step.start(y), y).value[0] ** 2).sum()

    stepsize = next(p for n, p in model.named_parameters() if "stepsize" in n)
    inputs = [prior.inner.weight, prior.inner.bias, physics.strength, stepsize, y]
    gradients = torch.autograd.grad(loss(), inputs)
    for tensor, gradient in zip(inputs, gradients, strict=True):
        direction, ends = torch.randn_like(tensor), []
        with torch.no_grad():
            for move in (1e-6, -2e-6, 1e-6):
                tensor += move * direction
                ends.append(loss())
        difference = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-7)


def test_reconstruction_has_a_gradient_by_default(measured: Tensor) -> None:
    step = DeepinvStep(model_of("ADMM"), Blur())
    y = measured.clone().requires_grad_()
    s = fixed_point(step, step.start(y), y)
    s.value[0].sum().backward()
    assert y.grad is not None
    assert y.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("PGD", {"anderson_acceleration": True}, "applied twice"),
        ("PGD", {"backtracking": True}, "backtracking changes `stepsize`"),
        ("PGD", {"stepsize": [0.4, 0.3, 0.2]}, "`stepsize` changes with the iteration"),
        ("PGD", {"prior": [L1, L1, L1]}, "`prior` changes with the iteration"),
        ("FISTA", {}, "momentum changes with the iteration: use PGD"),
    ],
)
def test_what_is_no_fixed_map_is_refused(name: str, options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DeepinvStep(model_of(name, **options), Blur())
