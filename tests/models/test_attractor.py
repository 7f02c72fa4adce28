"""The Attractor wrapper: any backbone, any refiner, and a solver that can be removed."""

from typing import Any

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


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (None, "with x = None; its first weight is float64[5, 3]. Pass an `x` of the shape"),
        (torch.zeros(4, 3), "with x = float32[4, 3]; its first weight is float64[5, 3]"),
        (torch.zeros(4, 6).double(), "with x = float64[4, 6]; its first weight is float64[5, 3]"),
        (torch.zeros(4, 3).numpy(), "with x = ndarray; its first weight is float64[5, 3]"),
    ],
)
def test_an_error_of_the_backbone_says_what_it_got(model: Attractor, x: Any, words: str) -> None:
    with pytest.raises((RuntimeError, TypeError)) as caught:
        model(x)
    assert words in caught.value.__notes__[0]


class Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> None:
        pass


@pytest.mark.parametrize("max_steps", [0, 5])
def test_a_backbone_must_return_tensors(max_steps: int) -> None:
    with pytest.raises(TypeError, match=r"got None(Type)?\."):
        Attractor(Nothing(), Pull(5))(torch.ones(2, 3), max_steps=max_steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": None}, "`backbone` must be a module: got NoneType"),
        ({"refiner": Pull}, "got the class Pull. Create an object of it"),
        ({"start_noise": -1.0}, "`start_noise` must be finite and at least 0, got -1.0"),
        ({"max_steps": 1.5}, "`max_steps` must be an integer"),
        ({"max_steps": "3"}, "`max_steps` must be an integer"),
        ({"max_steps": -1}, "`max_steps` must be an integer of at least 0"),
        ({"batch_dims": -1}, "`batch_dims` must be an integer of at least 0"),
        ({"max_step": 3}, "Did you mean 'max_steps'"),
        ({"rtol": 1e-3}, r"solver: solver=get_solver\('anderson', rtol=0.001\)"),
    ],
)
def test_options_are_checked_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Attractor(**{"backbone": nn.Identity(), "refiner": Pull(5), **options})


def test_slips_of_a_call_name_what_was_meant(model: Attractor) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(TypeError, match="Did you mean 'max_steps'"):
        model(x, max_step=3)
    with pytest.raises(ValueError, match="`max_steps` must be") as error:
        model(x, max_steps=-1)
    assert not hasattr(error.value, "__notes__")  # it is no matter of the backbone
    with pytest.raises(TypeError, match="`fresh` must be a tensor of dtype bool"):
        model(x, start=torch.zeros(4, 5).double(), fresh=[True] * 4)
    with pytest.raises(AttributeError, match=r"as in `s.value.shape`"):
        _ = model(x).shape


def test_unknown_names_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="Did you mean 'anderson'"):
        Attractor(nn.Identity(), Pull(5), solver="andersen")
    with pytest.raises(ValueError, match="Unknown backward mode 'exakt'"):
        Attractor(nn.Identity(), Pull(5), backward="exakt")
