"""The paper's rows: presets, commands, plans and page say the same."""

import importlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tasks.__main__ import main
from tasks.lm.config import PRESETS as LM
from tasks.maze.config import PRESETS as MAZE
from tasks.reproduce import Row, cost, differences, hours, listing, planned, plans, tables
from tasks.sudoku.config import PRESETS as SUDOKU

page = importlib.import_module("docs.reproduce_tables")
ROWS = [row for table in tables() for row in table.rows]
TRAINED = page.planned_rows()
# Presets of our own, which reproduce nothing.
OURS = {
    "lm": {"tiny", "mini", "small", "shakespeare"},
    "sudoku": {"tiny", "mini", "standard", "hard", "extreme"},
    "maze": {"tiny", "mini", "hard", "unique"},
}
PRESETS: dict[str, Any] = {"lm": LM, "sudoku": SUDOKU, "maze": MAZE}


@pytest.mark.parametrize("task", PRESETS)
def test_every_published_preset_has_a_row(task: str) -> None:
    named = {row.preset for row in ROWS if row.task == task}
    assert set(PRESETS[task]) - OURS[task] <= named


def test_every_row_has_commands_or_a_reason() -> None:
    for row in ROWS:
        assert (row.missing is None) == bool(row.commands), row.name
        assert row.paper, row.name


def test_every_difference_is_explained_and_is_one_of_some_row() -> None:
    named = {name for each in (*tables(), *ROWS) for name in each.differences}
    assert set(differences()) == named
    text = page.PAGE.read_text()
    assert all(f"| {name} | {reason} |" in text for name, reason in differences().items())


@pytest.mark.parametrize("row", [row for row in ROWS if row.tokens], ids=lambda row: row.key)
def test_rows_read_the_tokens_that_their_presets_would_stream(row: Row) -> None:
    """So that no GPU waits for data, which the planned hours leave out."""
    config, source = page.config_of(row), LM[str(row.tokens)]
    assert config.data == source.data
    assert config.num_train_tokens == source.num_train_tokens
    prepare, train, *_ = row.commands
    assert prepare == f"python -m tasks.lm prepare tokens-{row.tokens} --preset {row.tokens}"
    assert f" --preset {row.preset} " in train
    assert train.endswith(f" --shards tokens-{row.tokens}")


def test_every_row_that_would_be_streamed_reads_prepared_tokens() -> None:
    streamed = [row for row in TRAINED.values() if row.task == "lm"]
    assert streamed
    assert all(page.config_of(row).data.dataset is None or row.tokens for row in streamed)


def test_rows_of_a_table_are_told_apart() -> None:
    for table in tables():
        assert max(Counter(row.name for row in table.rows).values()) == 1


def test_plans_are_those_of_the_rows() -> None:
    assert list(plans()) == list(TRAINED)


@pytest.mark.parametrize("row", TRAINED.values(), ids=list(TRAINED))
def test_budgets_are_those_of_the_presets(row: Row) -> None:
    config, plan = page.config_of(row), row.plan
    assert plan["steps"] == config.train.steps
    per_step = config.train.batch_size * config.units_per_sample
    assert plan["budget"] == config.train.steps * per_step
    assert plan["unit"] == config.unit


def test_costs_are_those_of_all_gpus_for_the_hours() -> None:
    plan = {"hours": 0.25, "most_hours": 30.0}
    assert (hours(plan), cost(plan)) == ("0.25 to 30", "5 to 600")
    assert cost({"hours": 1.0, "most_hours": 1.0}) == "20"
    for row in TRAINED.values():
        assert f" h, {cost(row.plan)} dollars at 2.5 for a GPU's hour" in planned(row)


def test_the_page_shows_what_the_rows_say() -> None:
    text = page.PAGE.read_text()
    assert page.filled(text) == text, "run `python -m docs.reproduce_tables --page`"


@pytest.mark.slow
@pytest.mark.long
def test_plans_are_what_the_planner_says() -> None:
    for key, row in TRAINED.items():
        assert page.plan_of(row) == plans()[key], "run `python -m docs.reproduce_tables`"


def test_the_list_has_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list"]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{listing()}\n"
    words = " ".join(printed.split())
    for row in ROWS:
        assert f"{row.name}; the paper: {row.paper}" in words
        assert all(command in printed for command in row.commands)
        assert row.missing is None or row.missing in words
    assert all(f"{name}: {reason}" in words for name, reason in differences().items())


@pytest.mark.parametrize("arguments", [[], ["--help"], ["reproduce", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("usage: python -m tasks reproduce --list")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("attractor-models ")


@pytest.mark.parametrize("arguments", [["reproduce"], ["sudku"], ["reproduce", "--lst"]])
def test_what_it_does_not_take_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert (
        error == "error: `python -m tasks` takes `reproduce --list` or `--version`, got "
        f"{' '.join(arguments)!r}.\n"
    )


def test_tasks_of_other_packages_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "knights.py").write_text("def main(arguments): return len(arguments)\n")
    info = tmp_path / "knights-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: knights\nVersion: 1.0\n")
    points = "tour = knights:main\nlost = knights:mane\nname = knights:__name__\n"
    (info / "entry_points.txt").write_text(f"[attractor_models.tasks]\n{points}")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["tour", "train", "--steps", "3"]) == 3
    assert main([]) == 0
    assert "Installed: lost, name, tour." in capsys.readouterr().out
    assert main(["tuor"]) == 2
    assert "or an installed task (lost, name, tour), got 'tuor'." in capsys.readouterr().err
    for name, why in (("lost", "cannot be loaded"), ("name", "is no function, but 'knights'")):
        assert main([name, "train"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: The task {name!r}, which knights 1.0 names as ")
        assert why in said


def test_the_list_needs_no_torch() -> None:
    code = (
        "import runpy, sys; sys.argv = ['tasks', 'reproduce', '--list']\n"
        "try: runpy.run_module('tasks', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert re.search(r"^Sudoku-Extreme ", run.stdout, re.MULTILINE)


def test_a_task_of_ours_without_its_dot_is_told_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sudoku", "solve", "..."]) == 2
    assert "write `python -m tasks.sudoku solve ...`" in capsys.readouterr().err
