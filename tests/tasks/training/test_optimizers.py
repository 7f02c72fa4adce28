"""Who is trained by what, and the course of the learning rate."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from models import AttractorLM, LanguageSpec
from tasks.checkpoints.checkpoint import optimizer_tensors, restore_optimizer
from tasks.lm.config import LanguageConfig
from tasks.maze.config import MazeConfig
from tasks.training.adam_atan2 import AdamATan2
from tasks.training.optimizers import SCHEDULES, build_optimizers

SPEC = LanguageSpec(vocabulary=300, width=16, num_heads=2, backbone_blocks=1)


def test_muon_takes_the_matrices_within_blocks_and_adamw_the_rest() -> None:
    model = AttractorLM(SPEC)
    muon, adamw = build_optimizers(model, LanguageConfig.of(optimizer="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    taken = [
        {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
        for optimizer in (muon, adamw)
    ]
    assert taken[0] | taken[1] == set(names.values())
    assert not taken[0] & taken[1]
    assert "vocabulary.embedding.weight" in taken[1]
    assert all(name.endswith("weight") and "norm" not in name for name in taken[0])
    assert sum("mixer.qkv" in name for name in taken[0]) == 2


@pytest.mark.parametrize(("mixer", "matrices"), [("gpt2", 4), ("llama", 7)])
def test_matrices_of_transformers_are_matrices_too(mixer: Any, matrices: int) -> None:
    """Those of GPT-2 are no `nn.Linear`; its positions are a table, not a matrix."""
    pytest.importorskip("transformers")
    stack = dataclasses.replace(SPEC, mixer=mixer).stack(1)
    muon, adamw = build_optimizers(stack, LanguageConfig.of(optimizer="muon"))
    names = {id(p): name for name, p in stack.named_parameters()}
    taken = [names[id(p)] for p in muon.param_groups[0]["params"]]
    assert len(taken) == matrices
    assert not [name for name in taken if "wpe" in name or "norm" in name or "ln_" in name]
    assert len(adamw.param_groups[0]["params"]) == len(names) - matrices


def test_filters_of_convolutions_are_matrices_too() -> None:
    model = MazeConfig.of().build()
    muon, _ = build_optimizers(model, MazeConfig.of(optimizer="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    taken = [names[id(p)] for p in muon.param_groups[0]["params"]]
    assert sum(name.endswith("mixer.weight") for name in taken) == 3


@pytest.mark.parametrize(
    ("kind", "rate"), [("adamw", 0.01), ("muon", 0.1), ("normuon", 0.03), ("adam-atan2", 0.01)]
)
def test_each_of_them_minimises(kind: str, rate: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    task = MazeConfig if kind == "adam-atan2" else LanguageConfig
    config: Any = task.of(optimizer=kind, learning_rate=rate)
    optimizers = build_optimizers(model, config)
    x = torch.randn(64, 4)
    losses = []
    for _ in range(200):
        loss = (model(x)[:, 0] - x.sum(1)).square().mean()
        losses.append(loss.item())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]


def test_adam_atan2_is_the_published_formula() -> None:
    """Number by number, with the correction of the first moment outside of the arctangent."""
    start, gradients = [0.5, -2.0, 0.0], [[1.0, 1e-9, 0.0], [-3.0, 2e-9, 0.0], [0.5, 1e9, -1.0]]
    weight = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = AdamATan2([weight, nn.Parameter(torch.ones(2))], 0.1, (0.9, 0.95), 0.5)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    for i, value in enumerate(start):
        m = v = 0.0
        for t, gradient in enumerate(gradients, 1):
            m, v = 0.9 * m + 0.1 * gradient[i], 0.95 * v + 0.05 * gradient[i] ** 2
            angle = math.atan2(m, math.sqrt(v) / math.sqrt(1 - 0.95**t))
            value = value * (1 - 0.1 * 0.5) - 0.1 / (1 - 0.9**t) * angle
        assert weight[i].item() == pytest.approx(value, rel=1e-13, abs=1e-15)
    assert len(optimizer.state) == 1  # a weight without a gradient stays as it is


def test_adam_atan2_goes_on_from_a_checkpoint() -> None:
    def trained(steps: int, state: dict[str, Any]) -> tuple[nn.Parameter, AdamATan2]:
        weight = nn.Parameter(torch.ones(3) if not state else state["weight"].clone())
        optimizer = AdamATan2([weight])
        if state:
            restore_optimizer(optimizer, state["optimizer"])
        for step in range(steps):
            weight.grad = torch.sin(torch.arange(3.0) + step + (2 if state else 0))
            optimizer.step()
        return weight, optimizer

    weight, optimizer = trained(2, {})
    tensors = {name: value.clone() for name, value in optimizer_tensors(optimizer).items()}
    again, _ = trained(1, {"weight": weight.detach(), "optimizer": tensors})
    assert torch.equal(again, trained(3, {})[0])


def test_adam_atan2_ignores_the_scale_of_gradients() -> None:
    moved = []
    for scale in (1.0, 2.0**60):
        weight = nn.Parameter(torch.ones(5))
        optimizer = AdamATan2([weight])
        for step in range(3):
            weight.grad = scale * torch.sin(torch.arange(5.0) + step)
            optimizer.step()
        moved.append(weight.detach())
    assert torch.allclose(moved[0], moved[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "end"), [("cosine", 0.01), ("trapezoid", 0.01), ("trapezoid-to-zero", 0.0)]
)
def test_schedules_fall_from_one_to_their_end(name: str, end: float) -> None:
    values = [SCHEDULES[name](i / 100) for i in range(101)]
    assert values[0] == 1
    assert values[-1] == pytest.approx(end, abs=1e-12)
    assert values == sorted(values, reverse=True)


def test_constant_schedule_stays() -> None:
    assert {SCHEDULES["constant"](i / 100) for i in range(101)} == {1}


@pytest.mark.parametrize("name", ["trapezoid", "trapezoid-to-zero"])
def test_trapezoid_is_flat_first(name: str) -> None:
    assert SCHEDULES[name](0.5) == 1
    assert SCHEDULES[name](0.75) == 0.5


def test_the_released_schedule_takes_its_last_step_at_the_last_share_of_its_line() -> None:
    """`recpre/schedulers/base.py` of jacobfa/Attractor: a cool-down of half of the steps to 0."""
    steps, cooldown = 40, 20
    for step in range(steps):
        released = 1.0 if step <= steps - cooldown else (steps - step) / cooldown
        assert SCHEDULES["trapezoid-to-zero"](step / steps) == pytest.approx(released, rel=1e-12)
