"""The Jacobian penalty: unbiased, and its gradient too, against dense Jacobians."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from implicit import fixed_point
from implicit.diagnostics.penalty import jacobian_penalty
from solvers.testing.problems import PROBLEMS, Problem


def make() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    weight = 0.3 * torch.randn(4, 4, generator=g, dtype=torch.float64)
    x = torch.randn(3, 4, generator=g, dtype=torch.float64)
    y = torch.randn(3, 4, generator=g, dtype=torch.float64)
    return weight.requires_grad_(), x.requires_grad_(), y.requires_grad_()


def dense(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """|J|_F^2 / n of y -> tanh(y W^T + x), whose Jacobian is diag(1 - tanh^2) W per sample."""
    slope = 1 - torch.tanh(y @ weight.T + x).square()
    return (slope[:, :, None] * weight).square().sum() / y.numel()


def estimate(weight: Tensor, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    return jacobian_penalty(
        lambda y, x: torch.tanh(y @ weight.T + x), y, x,
        generator=torch.Generator().manual_seed(1), **options,
    )  # fmt: skip


def test_all_sign_vectors_average_to_the_dense_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over all 2^4 probes is the expectation: unbiased, without any statistics."""
    weight, x, y = make()
    weight, x, y = weight, x[:1], y[:1]
    probes = [torch.tensor([[i >> k & 1 for k in range(4)]]) for i in range(16)]
    queue = iter(probes)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: next(queue).view(1, -1))
    found = estimate(weight, x, y, num_probes=16)
    assert torch.allclose(found, dense(weight, x, y), rtol=1e-12)


def test_estimate_and_its_gradients_approach_the_dense_ones() -> None:
    weight, x, y = make()
    found = estimate(weight, x, y, num_probes=4000)
    true = dense(weight, x, y.detach())
    assert found.shape == ()
    assert torch.allclose(found, true, rtol=0.02)
    found_gradients = torch.autograd.grad(found, [weight, x])
    for a, b in zip(found_gradients, torch.autograd.grad(true, [weight, x]), strict=True):
        assert (a - b).norm() < 0.03 * b.norm()


@pytest.mark.parametrize("p", PROBLEMS, ids=lambda p: p.name)
def test_dense_norm_of_the_zoo(p: Problem) -> None:
    found = jacobian_penalty(
        p.f, p.y_star, *p.args, num_probes=300, generator=torch.Generator().manual_seed(2)
    )
    true = p.jacobian.square().sum((1, 2)).mean() / p.jacobian.shape[-1]
    assert found.item() == pytest.approx(true.item(), rel=0.05)


def test_gradient_is_that_of_the_estimate_itself() -> None:
    weight, x, y = make()
    assert torch.autograd.gradcheck(lambda w, x: estimate(w, x, y), (weight, x))
    assert torch.autograd.gradcheck(lambda *i: estimate(*i, detach=False), (weight, x, y))


def test_the_point_is_a_constant_unless_the_caller_says_otherwise() -> None:
    weight, x, y = make()
    (found,) = torch.autograd.grad(estimate(weight, x, y), y, allow_unused=True)
    assert found is None
    found = estimate(weight, x, y, num_probes=4000, detach=False)
    (a,), (b,) = torch.autograd.grad(found, y), torch.autograd.grad(dense(weight, x, y), y)
    assert (a - b).norm() < 0.05 * b.norm()


def test_attached_point_follows_the_fixed_point() -> None:
    """With `detach=False` the gradient includes where the solution moves to."""
    weight, x, _ = make()

    def penalty(weight: Tensor, detach: bool) -> Tensor:
        s = fixed_point(
            lambda y, x: torch.tanh(y @ weight.T + x), torch.zeros_like(x), x.detach(),
            max_steps=200, solver="picard",
        )  # fmt: skip
        return estimate(weight, x.detach(), s.value, detach=detach)

    def by_differences(weight: Tensor) -> Tensor:
        h = 1e-3 * torch.ones_like(weight)
        return (penalty(weight + h, False) - penalty(weight - h, False)) / 2e-3

    (moving,) = torch.autograd.grad(penalty(weight, False), weight)
    (fixed,) = torch.autograd.grad(penalty(weight, True), weight)
    true = by_differences(weight.detach())
    assert moving.sum().item() == pytest.approx(true.item(), rel=1e-3)
    assert fixed.sum().item() != pytest.approx(true.item(), rel=1e-2)


def test_training_on_the_penalty_shrinks_the_jacobian() -> None:
    torch.manual_seed(0)
    module = nn.Linear(6, 6)
    nn.init.normal_(module.weight)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
    before = module.weight.detach().norm()
    for _ in range(20):
        optimiser.zero_grad()
        jacobian_penalty(module, torch.randn(8, 6)).backward()
        optimiser.step()
    assert module.weight.norm() < 0.5 * before


def test_trees_coupled_samples_and_maps_that_ignore_their_state() -> None:
    y = {"a": torch.zeros(3, 1, dtype=torch.float64), "b": torch.zeros(3, 2, dtype=torch.float64)}

    def f(y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": 3 * y["b"][:, :1].flip(0), "b": torch.ones_like(y["b"])}

    # Three entries of 3 in a Jacobian of nine rows.
    assert jacobian_penalty(f, y).item() == pytest.approx(3 * 3**2 / 9, rel=1e-12)
    assert jacobian_penalty(lambda y: torch.ones(2, 2), torch.zeros(2, 2)).item() == 0
    assert jacobian_penalty(lambda y: y, torch.zeros(0, 2)).item() == 0


def test_probes_are_random_and_reproducible() -> None:
    weight, x, y = make()
    torch.manual_seed(0)
    first, second = (jacobian_penalty(lambda y: torch.tanh(y @ weight.T), y) for _ in range(2))
    assert first != second
    assert torch.equal(estimate(weight, x, y), estimate(weight, x, y))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_without_grad_mode_there_is_a_value_and_no_graph(mode: type) -> None:
    weight, x, y = make()
    with mode():
        found = estimate(weight, x, y)
    assert found.requires_grad == (mode is torch.enable_grad)
    assert torch.allclose(found, estimate(weight, x, y))


def test_low_precision_and_autocast_sum_in_float32() -> None:
    weight = nn.Parameter(0.5 * torch.eye(64))
    low = weight.detach().bfloat16()
    y = torch.zeros(4, 64)
    found = jacobian_penalty(lambda y: y @ low.T, y.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = jacobian_penalty(lambda y: y @ weight.T, y)
    mixed.backward()
    assert found.dtype == mixed.dtype == torch.float32
    assert found.item() == mixed.item() == 0.25
    assert weight.grad is not None
    assert weight.grad.diagonal().sum().item() == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("num_probes", [0, 1.5, True])
def test_bad_number_of_probes_is_refused(num_probes: int) -> None:
    with pytest.raises(ValueError, match="`num_probes` must be an integer of at least 1, got"):
        jacobian_penalty(lambda y: y, torch.zeros(1, 2), num_probes=num_probes)
