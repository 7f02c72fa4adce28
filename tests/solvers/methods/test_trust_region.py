"""The step of Newton's method within a trust region, against a search for the best one."""

import pytest
import torch

from solvers.methods.trust_region import Model

D = torch.float64


@pytest.mark.parametrize("radius", [1e-3, 0.1, 0.5, 10.0])
def test_the_step_is_the_best_within_the_radius(radius: float) -> None:
    """It removes |w|^2 - |w - s|^2 of |g|^2, where s = w / (1 + lam * squares)."""
    squares, weights = torch.tensor([[1.0, 100.0, 0.01]], dtype=D), torch.full((1, 3), 0.5, dtype=D)
    model = Model(torch.eye(3, dtype=D)[None] * squares.sqrt(), squares, weights)
    step, length, removed = model.step(torch.tensor([radius], dtype=D))
    lam = torch.cat((torch.zeros(1, dtype=D), torch.logspace(-6, 12, 20_000, dtype=D)))[:, None]
    shrunk = weights / (1 + lam * squares)
    allowed = (shrunk.square() * squares).sum(1).sqrt() <= radius
    best = (shrunk * (2 * weights - shrunk)).sum(1)[allowed].max()
    assert length.item() <= radius * (1 + 1e-9)
    assert torch.allclose(step.norm(), length)
    assert removed.item() == pytest.approx(best.item(), rel=0.02)
