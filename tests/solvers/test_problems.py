"""The zoo itself: its answers, Jacobians and gradients are right."""

import pytest
import torch
from torch import Tensor

from solvers.testing.problems import PROBLEMS, Problem, exact_gradients, leaves, residual
from solvers.types import State

ON_EACH = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
WEIGHTED = [problem for problem in PROBLEMS if problem.weight is not None]


@ON_EACH
def test_answer_and_radius(problem: Problem) -> None:
    assert residual(problem.f, problem.y_star, *problem.args).max() < 1e-12
    radius = float(torch.linalg.eigvals(problem.jacobian).abs().max())
    assert radius <= problem.radius * (1 + 1e-9)
    assert problem.name == "tanh" or radius == pytest.approx(problem.radius)


@ON_EACH
def test_jacobian_agrees_with_autograd(problem: Problem) -> None:
    p = problem.to(torch.float64, 2)
    tangent = torch.randn(
        p.jacobian.shape[:2], generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    expected = (p.jacobian @ tangent[..., None])[..., 0]
    ahead, behind = (flat(p.f(moved(p.y_star, h * tangent), *p.args)) for h in (1e-5, -1e-5))
    assert torch.allclose((ahead - behind) / 2e-5, expected, atol=1e-8)


def flat(state: State) -> Tensor:
    return torch.cat([leaf.flatten(1) for leaf in leaves(state)], 1)


def moved(state: State, by: Tensor) -> State:
    """The state plus a matrix with a row per sample."""
    parts = by.split([leaf[0].numel() for leaf in leaves(state)], 1)
    new = [leaf + part.view_as(leaf) for leaf, part in zip(leaves(state), parts, strict=True)]
    return dict(zip(state, new, strict=True)) if isinstance(state, dict) else new[0]


@pytest.mark.parametrize("problem", WEIGHTED, ids=lambda problem: problem.name)
def test_exact_gradients_by_backpropagation_through_a_dense_newton_step(problem: Problem) -> None:
    """y* + (I - J)^-1 (f(y*) - y*) has the value and the gradient of y*."""
    assert problem.weight is not None
    assert problem.build is not None
    weight = problem.weight.clone().requires_grad_()
    x = problem.args[0].clone().requires_grad_()
    eye = torch.eye(problem.jacobian.shape[-1], dtype=torch.float64)
    gap: Tensor = problem.build(weight)(problem.y_star, x) - problem.y_star
    y = problem.y_star + torch.linalg.solve(eye - problem.jacobian, gap[..., None])[..., 0]
    expected = torch.autograd.grad(0.5 * y.square().sum(), (x, weight))
    for mine, other in zip(exact_gradients(problem), expected, strict=True):
        assert torch.allclose(mine, other, rtol=1e-9)
