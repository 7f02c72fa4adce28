"""The comparison: equal sizes, no run twice, one table."""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch

from tasks.maze.config import PRESETS as MAZE
from tasks.puzzles.config import ModelName
from tasks.puzzles.experiment import CompareOptions, compare_puzzles, sized
from tasks.sudoku.__main__ import main
from tasks.sudoku.config import PRESETS as SUDOKU
from tasks.sudoku.task import SudokuTask


@pytest.mark.parametrize("model", get_args(ModelName))
@pytest.mark.parametrize("config", [SUDOKU["mini"], SUDOKU["standard"], MAZE["mini"]])
def test_every_model_is_within_5_percent_of_the_attractor(config, model: ModelName) -> None:
    def count(config) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in config.build().parameters())

    assert count(sized(config, model)) == pytest.approx(count(config), rel=0.05)


@pytest.mark.slow
def test_compare_finishes_what_is_missing_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"train_puzzles": 60, "test_puzzles": 20, "eval_max_steps": 4}
    monkeypatch.setitem(SUDOKU, "tiny", SUDOKU["tiny"].changed(**small))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "runs"
    arguments = ["compare", "--preset", "tiny", "--models", "attractor", "transformer"]
    arguments += ["--rates", "1e-3", "3e-3", "--minutes", "0.01", "--width", "8"]
    arguments += ["--seeds", "2", "--out", str(out)]
    assert main(arguments) == 0
    printed, said = capsys.readouterr()
    assert "Run 2 of 4: attractor-0.003-seed0\n" in printed
    assert "Run 2 of 2: transformer-" in printed
    assert said.count("Evaluating: answers ...\n") >= 6
    table = json.loads((out / "table.json").read_text())
    assert {row["model"] for row in table["rows"]} == {"attractor", "transformer"}
    for row in table["rows"]:
        assert row["seeds"] == 2
        assert set(row["search"]) == {"0.001", "0.003"}
        assert row["search"][str(row["rate"])] == max(row["search"].values())
    # Two rates with one seed, and the better one with another: three runs a model.
    runs = {path: path.stat().st_mtime_ns for path in out.glob("*/compare.json")}
    assert len(runs) == 6
    monkeypatch.setattr(multiprocessing, "cpu_count", lambda: 2)
    assert main([*arguments, "--jobs", "2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/compare.json")} == runs
    assert "attractor" in capsys.readouterr().out


@pytest.mark.slow
def test_several_jobs_give_every_run_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "runs"
    base = SUDOKU["tiny"].changed(train_puzzles=60, test_puzzles=20, eval_max_steps=4, width=8)
    monkeypatch.setattr(multiprocessing, "cpu_count", lambda: 2)
    options = CompareOptions(
        models=("attractor", "transformer"), rates=(1e-3,), seeds=1, minutes=0.01, jobs=2, out=out
    )
    table = compare_puzzles(SudokuTask(), "tiny", base, options)
    assert {row["model"] for row in table["rows"]} == {"attractor", "transformer"}
    assert len(list(out.glob("*/output.txt"))) == 2
    printed, said = capsys.readouterr()
    assert "2 of 2: " in printed
    assert said == "Training: 2 runs, 2 at a time ...\n"


@pytest.mark.parametrize("jobs", [0, 10_000])
def test_jobs_that_share_a_core_are_refused(jobs: int) -> None:
    with pytest.raises(ValueError, match=r"`jobs` must lie in 1\.\."):
        CompareOptions(jobs=jobs)


@pytest.mark.slow
@pytest.mark.skipif(multiprocessing.cpu_count() < 2, reason="two jobs need two cores")
def test_a_killed_command_takes_its_processes_along_and_loses_no_run(tmp_path: Path) -> None:
    """They would train on in the background, on the cores of the next command."""
    out = tmp_path / "runs"
    arguments = [sys.executable, "-m", "tasks.sudoku", "compare", "--preset", "tiny"]
    arguments += ["--models", "attractor", "--rates", "1e-3", "2e-3", "--minutes", "5"]
    arguments += ["--jobs", "2", "--out", str(out)]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL) as command:
        logs = [out / f"attractor-{rate}-seed0" / "log.jsonl" for rate in ("0.001", "0.002")]
        _wait(lambda: all(log.is_file() and log.stat().st_size > 0 for log in logs))
        command.kill()
    # Far from the first checkpoint of a minute.
    _wait(lambda: all(log.with_name("checkpoint.safetensors").is_file() for log in logs))
    if Path("/proc").is_dir():
        _wait(lambda: not _processes_with(str(tmp_path)))


def _processes_with(value: str) -> list[Path]:
    """Processes whose environment holds a value."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if value.encode() in path.read_bytes():
                found.append(path)
    return found


def _wait(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)
