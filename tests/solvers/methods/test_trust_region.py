"""The step of Newton's method within a trust region."""

import pytest
import torch
from torch import Tensor

from solvers.derivatives import Linearisation
from solvers.methods.trust_region import Model, build

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


def test_the_model_of_a_sample_does_not_depend_on_the_others() -> None:
    """Not even beside a derivative whose rounding is as large as the whole of its own."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1.0, 1e16], dtype=D)[:, None, None]
    matrices = sizes * torch.randn(2, 4, 4, generator=generator, dtype=D)
    g = torch.full((2, 4), 0.5, dtype=D)

    def step(rows: slice) -> Tensor:
        jacobian = Linearisation(
            lambda y: torch.bmm(y[:, None], matrices[rows])[:, 0], torch.zeros_like(g[rows])
        )
        ones = torch.ones(len(g[rows]), dtype=D)
        model = build(
            jacobian, g[rows], wanted=ones.bool(), forcing=1e-9 * ones, radius=1e9 * ones,
            inner_steps=4,
        )  # fmt: skip
        return model.step(1e9 * ones)[0]

    assert torch.allclose(step(slice(2))[:1], step(slice(1)), rtol=1e-9)
