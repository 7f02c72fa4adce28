"""The Attractor wrapper: any backbone, any refiner, and a solver that can be removed."""

import pytest
import torch
from torch import nn

from implicit import Exact
from models import Attractor


class Pull(nn.Module):
    """y -> W tanh(y) + y0, a contraction."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.eye(width, dtype=torch.float64))
        self.calls = 0

    def forward(self, y: torch.Tensor, y0: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.tanh(y) @ self.weight + y0


@pytest.fixture
def model() -> Attractor:
    torch.manual_seed(0)
    return Attractor(nn.Linear(3, 5).double(), Pull(5), backward=Exact(), max_steps=40)


def test_value_is_a_fixed_point_of_the_refiner(model: Attractor) -> None:
    out = model(torch.randn(4, 3, dtype=torch.float64))
    assert out.solution.converged.all()
    again = torch.tanh(out.value) @ model.refiner.module.weight + out.proposal
    torch.testing.assert_close(again, out.value, atol=1e-4, rtol=0)


def test_no_steps_decode_the_proposal_without_calling_the_refiner(model: Attractor) -> None:
    out = model(torch.randn(4, 3, dtype=torch.float64), max_steps=0)
    assert torch.equal(out.value, out.proposal)
    assert model.refiner.module.calls == 0
    assert out.solution.num_evals == 0
    assert not out.solution.converged.any()
    assert out.solution.residual.isnan().all()


def test_gradient_reaches_the_backbone_through_the_equilibrium(model: Attractor) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    out = model(x)
    out.value.sum().backward()
    weight = model.refiner.module.weight
    slope = 1 - torch.tanh(out.value.detach()) ** 2
    # u = v + J^T u, with J = diag over entries here, as the weight is 0.3 times the identity.
    expected = 1 / (1 - 0.3 * slope)
    torch.testing.assert_close(model.backbone.bias.grad, expected.sum(0), rtol=1e-3, atol=0)
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_start_changes_where_the_solve_begins_not_where_it_ends(model: Attractor) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    cold, first = model(x), model(x, max_steps=1)
    warm = model(x, start=cold.value.detach())
    assert int(warm.solution.num_steps.max()) == 0
    assert int(first.solution.num_steps.max()) == 1
    torch.testing.assert_close(warm.value, cold.value, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("backbone", "refiner", "kind"),
    [
        (nn.GRU(3, 5, batch_first=True), Pull(5), ValueError),
        (nn.Linear(3, 5), nn.Linear(5, 5), TypeError),
    ],
)
def test_errors_of_a_first_call_say_what_calls_what(
    backbone: nn.Module, refiner: nn.Module, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        Attractor(backbone, refiner)(torch.randn(2, 4, 3))
    assert "refiner(y, y0)" in caught.value.__notes__[-1]


def test_unknown_names_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="Did you mean 'anderson'"):
        Attractor(nn.Identity(), Pull(5), solver="andersen")
    with pytest.raises(ValueError, match="Unknown backward mode 'exakt'"):
        Attractor(nn.Identity(), Pull(5), backward="exakt")
