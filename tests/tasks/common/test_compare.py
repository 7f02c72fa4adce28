"""The comparison: equal sizes, no run twice, one table."""

import dataclasses
import json
from pathlib import Path
from typing import get_args

import pytest
import torch

from tasks.common.compare import matched
from tasks.common.grid_config import ModelName
from tasks.maze.config import PRESETS as MAZE
from tasks.sudoku.__main__ import main
from tasks.sudoku.config import PRESETS as SUDOKU


@pytest.mark.parametrize("model", get_args(ModelName))
@pytest.mark.parametrize("config", [SUDOKU["mini"], SUDOKU["standard"], MAZE["mini"]])
def test_every_model_is_within_5_percent_of_the_attractor(config, model: ModelName) -> None:
    def count(config) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in config.build().parameters())

    assert count(matched(config, model)) == pytest.approx(count(config), rel=0.05)


def test_compare_finishes_what_is_missing_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"train_puzzles": 60, "test_puzzles": 20, "eval_steps": 4}
    monkeypatch.setitem(SUDOKU, "tiny", dataclasses.replace(SUDOKU["tiny"], **small))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "runs"
    arguments = ["compare", "--preset", "tiny", "--models", "attractor", "trm", "--seeds", "2"]
    arguments += ["--rates", "1e-3", "3e-3", "--minutes", "0.01", "--width", "8"]
    arguments += ["--out", str(out)]
    assert main(arguments) == 0
    table = json.loads((out / "table.json").read_text())
    assert {row["model"] for row in table["rows"]} == {"attractor", "trm"}
    for row in table["rows"]:
        assert row["seeds"] == 2
        assert set(row["search"]) == {"0.001", "0.003"}
        assert row["search"][str(row["rate"])] == max(row["search"].values())
    # Two rates with one seed, and the better one with another: three runs a model.
    runs = {path: path.stat().st_mtime_ns for path in out.glob("*/compare.json")}
    assert len(runs) == 6
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/compare.json")} == runs
    assert "attractor" in capsys.readouterr().out
