"""The training step on fake tensors: it knows no model and no mode, and allocates nothing."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from implicit import BackwardMode, Exact, FixedPointLayer, Phantom, Unrolled
from models import GridOutput
from solvers import Picard
from solvers.torch_internals import FakeTensorMode
from tasks.planning.plan import Plan
from tasks.planning.stand_ins import Assumed
from tasks.planning.step import FakeTraining, flop_counter
from tasks.sudoku.config import PRESETS, SudokuConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoCalls(BackwardMode):
    """A mode of somebody else's: two recorded calls."""

    def attach(self, f: Any, y_star: Any, context: Any = None) -> Any:
        return f(f(y_star.detach()))


class Map(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(y) + x)


class Model(nn.Module):
    """A model of somebody else's."""

    def __init__(self, backward: BackwardMode) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(5, 8), nn.Linear(8, 4)
        self.solving = FixedPointLayer(Map(), "picard", backward)

    def forward(self, x: Tensor, *, max_steps: int | None = None, **_: Any) -> GridOutput:
        embedded = self.embed(x)
        solution = self.solving(torch.zeros_like(embedded), embedded, max_steps=max_steps)
        return GridOutput(self.out(solution.value), solution.value, solution)


def config(mode: BackwardMode, **options: Any) -> SudokuConfig:
    given = SudokuConfig.of(side=4, min_clues=4, max_clues=6, train_max_steps=6, **options)

    class Config(SudokuConfig):
        def build(self) -> Any:
            return Model(mode)

    return Config(model=given.model, solve=given.solve, train=given.train, data=given.data)


@pytest.mark.parametrize("mode", [TwoCalls(), Phantom(steps=3), Exact(), Unrolled()])
@pytest.mark.filterwarnings("ignore:The gradient is approximate")
def test_a_model_and_a_mode_that_nobody_knows(mode: BackwardMode) -> None:
    """As many operations as in a real step that uses its whole budget."""
    given = config(mode)
    model = given.build()
    model.solving.solver = Picard(rtol=0.0, atol=0.0)
    with flop_counter() as counter:
        out = model(torch.zeros(3, 16, dtype=torch.long), max_steps=given.train_steps)
        out.logits.sum().backward()
    found = Plan(given)
    assert 3 * found.flops() == counter.get_total_flops()
    assert found.parameters == {"embedding": 40, "refiner": 72, "head": 36}


def test_an_adjoint_solver_of_its_own_is_replaced_too() -> None:
    own, usual = Exact(solver="gmres", max_steps=3), Exact(max_steps=3)
    assert Plan(config(own)).flops() == Plan(config(usual)).flops()


def test_a_step_more_costs_what_the_mode_makes_of_it() -> None:
    call = 2 * 8 * 8 * 16
    assert Plan(config(Phantom(steps=3))).flops_of_update == call
    assert Plan(config(Exact())).flops_of_update == 2 * call


def test_no_weight_is_allocated() -> None:
    preset = PRESETS["sudoku-extreme-27m"]
    with torch.device("meta"):
        model = preset.build()
    training = FakeTraining(model, preset)
    assert {p.untyped_storage().device.type for p in training.model.parameters()} == {"meta"}
    assert training.optimizer_bytes == pytest.approx(8 * 27_274_753, rel=1e-4)


def test_a_model_without_a_backbone_cannot_recompute_it() -> None:
    with pytest.raises(ValueError, match="Model has none"):
        Plan(config(TwoCalls(), checkpoint_activations=True))


def test_what_is_read_of_fake_tensors() -> None:
    with FakeTensorMode(), Assumed(largest=7):
        unknown = torch.rand(3)
        assert not bool((unknown > 0).any())
        assert bool((unknown > 0).all())
        assert unknown.max().item() == 7
        assert unknown.sum().item() == 1
        # A single number that a program itself has made is known.
        assert torch.tensor([4]).item() == 4
        assert bool(torch.tensor([4]).any())
