"""`python -m tasks.<name> plan` from end to end."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from token_folders import run_on_text

from tasks.lm.__main__ import main as lm
from tasks.lm.prepare import prepare
from tasks.maze.__main__ import main as maze
from tasks.maze.config import PRESETS
from tasks.planning.starving import reading_plan
from tasks.sudoku.__main__ import main as sudoku
from tasks.training.reading import Reading


def test_a_language_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    arguments = ["plan", "--preset", "140m", "--gpus", "16", "--price", "2", "--json", str(path)]
    assert lm([*arguments, "--model", "transformer"]) == 0
    text = capsys.readouterr().out
    assert "Fits: DDP, without activation checkpointing, 16 sequences per GPU at once" in text
    result = json.loads(path.read_text())
    assert result == json.loads(text.splitlines()[-1])
    assert result["config"]["model"]["name"] == "transformer"
    found = result["plan"]
    assert sum(found["parameters"].values()) == 2 * found["parameters"]["total"]
    assert found["budget"] == pytest.approx(11.2e9, rel=0.001)
    assert "so that GPUs wait for data in" in text
    assert "Write the tokens once with `prepare`" in text
    assert found["reading"]["share_of_time"] > 0.8
    (row,) = found["training"]
    # 6 N and attention: see docs/scaling.md.
    attention = 14 * 8 * 2048 * 1024
    expected = 6 * found["parameters"]["total"] + attention
    assert row["flops_per_token"] == pytest.approx(expected, rel=0.01)
    assert row["cost"] == pytest.approx(row["days"] * 24 * 16 * 2)


def test_prepared_tokens_come_fast_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = str(tmp_path / "tokens")
    prepare(Path(tokens), run_on_text(tmp_path / "text"))
    arguments = ["plan", "--preset", "140m", "--gpus", "8", "--model", "transformer"]
    arguments += ["--vocabulary", "257", "--context", "128"]
    assert lm([*arguments, "--shards", tokens]) == 0
    out, text = capsys.readouterr()
    assert "wait for data" not in out + text
    reading = json.loads(out.splitlines()[-1])["plan"]["reading"]
    assert reading["times_the_need"] > 4
    assert reading["share_of_time"] < 0.02


def test_prepared_tokens_of_a_tiny_model_are_not_to_be_prepared_again() -> None:
    found = reading_plan(Reading("read", 1e6, own_rows=True), 1e9, 8)
    assert "wait for data in 99% of the time. The tokens are prepared already" in found["advice"]
    assert "`prepare`" not in found["advice"]


@pytest.mark.slow
def test_a_preset_takes_another_model(capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for name in ("tiny", "attractor-tiny", "parcae-tiny"):
        assert lm(["plan", "--preset", name, "--gpus", "8"]) == 0
        found[name] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["attractor-tiny"]["plan"] == found["tiny"]["plan"]
    assert found["attractor-tiny"]["preset"] == "attractor-tiny"
    assert found["parcae-tiny"]["config"]["model"]["name"] == "parcae"


def test_a_grid(capsys: pytest.CaptureFixture[str]) -> None:
    assert maze(["plan", "--preset", "tiny", "--gpus", "1", "--puzzles", "1000"]) == 0
    text = capsys.readouterr().out
    assert "use `--autocast`" in text
    found = json.loads(text.splitlines()[-1])["plan"]
    assert found["budget"] == 1000
    assert [row["parallel"] for row in found["memory"]] == ["one device"] * 2
    assert found["training"][-1]["solver_steps"] == PRESETS["tiny"].train_steps


@pytest.mark.parametrize(("main", "preset", "gpus"), [(maze, "tiny", 1), (lm, "140m", 8)])
def test_a_small_model_is_planned_for_one_gpu(
    main: Any, preset: str, gpus: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--preset", preset]) == 0
    out, text = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])["plan"]
    assert found["cluster"]["gpus"] == gpus
    assert (found["parameters"]["total"] < 1e8) == (gpus == 1)
    assert f"{gpus} x 80 GB" in text
    # What a small model takes has a unit that shows it.
    assert not re.search(r"\b0\.0 GB", text)


@pytest.mark.parametrize(("main", "arguments", "message"), [
    (lm, ["--text", "nope.txt"], "There is no text at nope.txt. Name a file or a folder"),
    (lm, ["--weights", "nope"], "No checkpoint at nope."),
    (maze, ["--train-data", "nope.csv"], "no file of mazes at nope.csv, which `--train-data`"),
    (sudoku, ["--test-data", "nope.csv"], "no file of puzzles at nope.csv, which `--test-data`"),
])  # fmt: skip
def test_a_file_that_is_not_there_is_missed_as_in_training(
    main: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("plan", "train"):
        assert main([command, *arguments]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_a_preset_whose_text_nobody_has_loaded_is_planned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(config: Any, _: Any) -> None:
        assert not config.data.text.exists()
        raise ValueError("here the plan begins")

    monkeypatch.setattr("tasks.planning.report.report", stop)
    assert lm(["plan", "--preset", "shakespeare"]) == 2
    assert "here the plan begins" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--gpus", "0"], "`--gpus` must be at least 1, got 0"),
    (["--gpu-memory", "-1"], "`--gpu-memory` must be above 0, got -1.0"),
    (["--utilisation", "0"], "`--utilisation` must lie in (0, 1], got 0.0"),
    (["--utilisation", "1.5"], "`--utilisation` must lie in (0, 1], got 1.5"),
    (["--price", "-2"], "`--price` must be 0 or more, got -2.0"),
    (["--tokens", "0"], "`--tokens` or `--puzzles` must be at least 1, got 0"),
    (["--preset", "attracter-140m"], "Unknown preset 'attracter-140m'"),
    (["--preset", "14m"], "Did you mean '140m'?"),
    (["--frobnicate", "3"], "Unknown option `--frobnicate`. `python -m tasks.lm plan --help`"),
])  # fmt: skip
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = lm(["plan", *arguments])
    except SystemExit as stop:  # how the flag parser refuses a value
        code = stop.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
