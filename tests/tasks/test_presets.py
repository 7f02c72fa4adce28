"""The published puzzle presets: sizes, recipes, and that their first steps run."""

from pathlib import Path

import pytest
import torch
from parameters import long

from tasks.maze.__main__ import commands as maze
from tasks.maze.config import PRESETS as MAZE
from tasks.puzzles.config import GridConfig
from tasks.puzzles.experiment import Batches
from tasks.sudoku.__main__ import commands as sudoku
from tasks.sudoku.config import PRESETS as SUDOKU
from tasks.training.trainer import Trainer

# Of every published preset: its parameters, and its optimiser steps. A name says the millions, or
# the thousands with two digits.
PUBLISHED = {
    "sudoku-extreme-7m": (6_827_521, 65_104),
    "sudoku-extreme-27m": (27_274_753, 130_208),
    "sudoku-extreme-solved-27m": (27_274_753, 130_208),
    "sudoku-extreme-trm-7m": (6_827_521, 65_104),
    "sudoku-extreme-trm-27m": (27_274_753, 130_208),
    "sudoku-extreme-trm-5m": (5_028_353, 65_104),
    "sudoku-extreme-eqr-5m": (4_853_249, 65_104),
    "sudoku-extreme-transformer-27m": (27_272_704, 26_041),
    "sudoku-extreme-hrm-27m": (27_275_266, 26_041),
    "maze-hard-7m": (6_822_401, 65_104),
    "maze-hard-27m": (27_269_633, 390_625),
    "maze-hard-solved-27m": (27_269_633, 390_625),
    "maze-hard-trm-7m": (6_822_401, 65_104),
    "maze-hard-trm-27m": (27_269_633, 390_625),
    "maze-hard-eqr-7m": (6_820_865, 65_104),
    "maze-hard-transformer-27m": (27_267_584, 26_041),
    "maze-hard-hrm-27m": (27_270_146, 26_041),
    "maze-unique-eqr-260k": (263_425, 130_208),
    "maze-unique-trm-260k": (263_681, 130_208),
}
PUZZLES: dict[str, GridConfig] = {**SUDOKU, **MAZE}

# Each of the others takes up to two minutes of a processor.
OFTEN = {"sudoku-extreme-7m", "sudoku-extreme-trm-5m"}


def parameters(config: GridConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


def test_every_published_preset_is_listed() -> None:
    ours = {"tiny", "mini", "standard", "hard", "extreme", "unique"}
    assert set(PUBLISHED) == set(PUZZLES) - ours


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_steps_are_those_published(name: str) -> None:
    config = PUZZLES[name]
    assert (parameters(config), config.train.steps) == PUBLISHED[name]
    size = name.rpartition("-")[2]
    unit, digits = (1e6, 0) if size.endswith("m") else (1e3, -1)
    assert round(PUBLISHED[name][0] / unit, digits) == int(size[:-1])


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_of_puzzles_are_those_published(name: str) -> None:
    """`cfg_pretrain.yaml` and the commands of TRM, HRM and EqR; the Attractor's trainer."""
    config = PUZZLES[name]
    train = config.train
    assert (train.learning_rate, train.schedule, train.warmup) == (1e-4, "constant", 2000)
    assert (train.weight_decay, train.loss) == (1.0, "stablemax")
    assert train.optimizer == ("adamw" if config.model.name == "reasoner" else "adam-atan2")
    assert train.averaging == (0.0 if config.model.name in ("hrm", "transformer") else 0.999)
    if config.model.name != "transformer":
        assert train.segments == 16
        assert config.model.halting == ("q-learning" if config.model.name == "hrm" else "right")
    assert config.spec().cycles == (6 if name.startswith("sudoku") else 4)
    epochs = {65_104: 50_000, 26_041: 20_000, 130_208: 50_000, 390_625: 50_000}[train.steps]
    if name.startswith("maze-unique"):
        epochs = 100_000
    assert train.steps == 1000 * epochs // train.batch_size


def test_mazes_of_our_own_layout_keep_the_cycles_of_their_weights() -> None:
    assert MAZE["mini"].adapted(model="trm").spec().cycles == 6


def test_names_of_other_models_mean_their_own_recipes() -> None:
    """ "transformer-sudoku-extreme-27m" had one block more, and 30.7 million parameters."""
    for commands, names in ((sudoku(), SUDOKU), (maze(), MAZE)):
        for name in names:
            stem, _, size = name.rpartition("-")
            kind, _, model = stem.rpartition("-")
            if model in GridConfig.kinds and f"{kind}-{size}" in names:
                assert commands.preset(f"{model}-{kind}-{size}") is names[name]
    assert sudoku().preset("transformer-mini") == SUDOKU["mini"].changed(model="transformer")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", [long(name, unless=name in OFTEN) for name in PUBLISHED])
def test_first_three_steps_on_a_small_batch(name: str, autocast: bool, tmp_path: Path) -> None:
    config = PUZZLES[name].adapted(batch_size=2, steps=3, autocast=autocast, eval_max_steps=2)
    spec = config.spec()

    def sample(
        rows: torch.Tensor, generator: torch.Generator, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (len(rows), spec.num_cells)
        inputs = spec.num_inputs or spec.num_symbols + 1
        x = torch.randint(inputs, shape, generator=generator)
        return x, torch.randint(spec.num_symbols, shape, generator=generator)

    held_out = sample(torch.arange(2), torch.Generator().manual_seed(0), 0.0)
    torch.manual_seed(0)
    task = Batches(sample, 10, held_out, max_steps=2)
    trainer = Trainer(task, config.build(), config, tmp_path, config.train_steps, {})
    trainer.run()
    assert trainer.step == 3
    assert all(row["loss"] == row["loss"] for row in trainer.history.rows)
