"""The published sizes: parameter counts, and that their first steps run."""

from pathlib import Path

import pytest
import torch
from parameters import long

from tasks.maze.config import PRESETS as MAZE
from tasks.puzzles.config import GridConfig
from tasks.puzzles.experiment import Batches
from tasks.sudoku.config import PRESETS as SUDOKU
from tasks.training.trainer import Trainer

PUBLISHED = {
    name: config for name, config in (*SUDOKU.items(), *MAZE.items()) if name.endswith("m")
}

# Each of the others takes up to two minutes of a processor.
OFTEN = {"sudoku-extreme-7m", "sudoku-extreme-trm-5m"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_is_what_the_name_says(name: str) -> None:
    with torch.device("meta"):
        model = PUBLISHED[name].build()
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(millions) == int(name.rpartition("-")[2].removesuffix("m"))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", [long(name, unless=name in OFTEN) for name in PUBLISHED])
def test_first_three_steps_on_a_small_batch(name: str, autocast: bool, tmp_path: Path) -> None:
    config: GridConfig = PUBLISHED[name].changed(
        batch_size=2, steps=3, autocast=autocast, eval_max_steps=2
    )
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
