"""A run that begins with the weights of another one."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tasks.sudoku
from tasks.checkpoints.file import CheckpointError
from tasks.experiments.run import train
from tasks.lm.config import PRESETS, LanguageConfig
from tasks.lm.experiment import TextExperiment
from tasks.puzzles.experiment import GridExperiment
from tasks.runs import export
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.task import SudokuTask

SUDOKU = SudokuConfig.of(
    side=4, min_clues=6, max_clues=8, width=8, steps=1, train_puzzles=8, test_puzzles=4,
    batch_size=4, learning_rate=1e-12, averaging=0.0,
)  # fmt: skip
TEXT = PRESETS["tiny"].changed(
    width=16, num_heads=2, vocabulary=300, max_bytes=60_000, eval_tokens=128, steps=1,
    batch_size=4, learning_rate=1e-12, averaging=0.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("experiment", "config"),
    [(GridExperiment(SudokuTask()), SUDOKU), (TextExperiment(), TEXT)],
)
def test_a_run_begins_with_the_averaged_weights_of_another(
    experiment: Any, config: SudokuConfig | LanguageConfig, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, _, _ = train(experiment, "tiny", config, tmp_path / "first")
    source = export(first.path, tmp_path / "model.safetensors")
    again = config.changed(seed=1, weights=source)
    second, _, _ = train(experiment, "tiny", again, tmp_path / "second")
    wanted = first.average.module.state_dict()
    for name, tensor in second.model.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)
    if isinstance(experiment, TextExperiment):
        tokenizers = [run.meta["tokenizer"] for run in (first, second)]
        assert tokenizers[0] == tokenizers[1]


def test_a_wider_run_begins_with_the_function_of_a_narrower_one(tmp_path: Path) -> None:
    config = SUDOKU.changed(side=9, min_clues=40, max_clues=45, width=40, weights=Path("extreme"))
    run, _, _ = train(GridExperiment(SudokuTask()), "tiny", config, tmp_path)
    x = torch.randint(0, 10, (2, 81))
    shipped = tasks.sudoku.load("extreme", device="cpu").model
    with torch.no_grad():
        wanted, found = (each(x, max_steps=4).logits for each in (shipped, run.model.eval()))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("extreme", "do not fit this model"),
        ("hard", "These come with the package: extreme"),
        ("tasks/maze/weights/hard.safetensors", "was trained on 'maze', not on 'sudoku'"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights: str, message: str, tmp_path: Path) -> None:
    config = SUDOKU.changed(weights=Path(weights))
    with pytest.raises(CheckpointError, match=message):
        train(GridExperiment(SudokuTask()), "tiny", config, tmp_path)
