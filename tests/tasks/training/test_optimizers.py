"""Who is trained by what, and the course of the learning rate."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from models import AttractorLM, LanguageSpec
from tasks.lm.config import LanguageConfig
from tasks.maze.config import MazeConfig
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


@pytest.mark.parametrize(("kind", "rate"), [("adamw", 0.01), ("muon", 0.1)])
def test_each_of_them_minimises(kind: str, rate: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    config = LanguageConfig.of(optimizer=kind, learning_rate=rate)  # type: ignore[arg-type]
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


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"constant"}))
def test_schedules_fall_from_one_to_one_percent(name: str) -> None:
    values = [SCHEDULES[name](i / 100) for i in range(101)]
    assert values[0] == 1
    assert values[-1] == pytest.approx(0.01)
    assert values == sorted(values, reverse=True)


def test_constant_schedule_stays() -> None:
    assert {SCHEDULES["constant"](i / 100) for i in range(101)} == {1}


def test_trapezoid_is_flat_first() -> None:
    assert SCHEDULES["trapezoid"](0.5) == 1
    assert SCHEDULES["trapezoid"](0.75) == 0.5
