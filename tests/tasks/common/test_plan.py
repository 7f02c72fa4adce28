"""The plan against what a real training step does."""

import contextlib
import dataclasses
from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tasks.common.grid_config import GridConfig, ModelName
from tasks.common.plan import plan
from tasks.maze.config import PRESETS as MAZE
from tasks.sudoku.config import PRESETS as SUDOKU

MODELS = [name for name in get_args(ModelName) if name != "unrolled"]


class Untracked(contextlib.nullcontext[None]):
    """In place of the tracker of modules, which refuses modules called inside a solve."""

    parents = frozenset({"Global"})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("base", [SUDOKU["mini"], MAZE["tiny"]])
def test_flops_within_5_and_activations_within_15_percent(
    base: GridConfig, model: ModelName, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(base, model=model, batch_size=4, rtol=0.0, solver="picard")
    expected = plan(config)
    torch.manual_seed(0)
    network = config.build().train()
    assert expected.parameters == sum(p.numel() for p in network.parameters())
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.zeros(4, config.spec().num_cells, dtype=torch.long)
    monkeypatch.setattr("torch.utils.flop_counter.ModuleTracker", Untracked)
    counter = FlopCounterMode(display=False)
    with counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = network(x, max_steps=config.train_steps).logits.square().mean()
        loss.backward()
    assert expected.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert expected.activation_bytes == pytest.approx(sum(kept.values()), rel=0.15)


def test_description_names_every_figure() -> None:
    text = plan(SUDOKU["sudoku-extreme-27m"]).describe()
    assert "27,296,266 parameters, 546 MB" in text
    assert "GFLOP per optimiser step" in text
