"""The example of a grid task: its rules, its sets, its size, and its commands from end to end."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from examples.queens.__main__ import main
from examples.queens.board import QueensRecipe, completions
from examples.queens.task import QueensTask
from tasks.puzzles.files import write_puzzles

ROOT = Path(__file__).parents[1]
TASK = QueensTask()
CONFIG = TASK.presets["tiny"].changed(train_puzzles=40, test_puzzles=10, batch_size=8, width=8)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and caches go to a temporary folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_grid_task_is_five_files_and_four_hundred_lines() -> None:
    files = [*(ROOT / "examples/queens").glob("*.py"), Path(__file__)]
    assert len(files) <= 5
    assert sum(len(path.read_text().splitlines()) for path in files) <= 400


def test_all_completions_are_found() -> None:
    assert [sum(1 for _ in completions({}, side)) for side in (4, 5, 6, 8)] == [2, 10, 4, 92]


def test_boards_have_one_completion_and_sets_share_no_answer() -> None:
    train, test = TASK.make(CONFIG)
    assert TASK.make(CONFIG) == (train, test)
    assert TASK.overlap(train, test, CONFIG) == 0
    for puzzle in (train + test)[::5]:
        given = {
            cell // 8: cell % 8 for cell, symbol in enumerate(puzzle.question) if symbol == "Q"
        }
        assert 4 <= len(given) <= 6
        assert len(list(islice(completions(given, 8), 2))) == 1
        assert TASK.complete("generated", TASK.question(puzzle.question)) == puzzle


def test_only_placements_by_the_rules_are_valid() -> None:
    puzzles, _ = TASK.make(CONFIG)
    x, y = TASK.sampler(puzzles, CONFIG)(torch.arange(40), torch.Generator().manual_seed(0), 0.0)
    assert not torch.equal(x, TASK.encode(puzzles, CONFIG)[0])
    assert TASK.is_valid(x, y, CONFIG).all()
    swapped = y.view(-1, 8, 8)[:, torch.tensor([1, 0, *range(2, 8)])].flatten(1)
    assert not TASK.is_valid(x, swapped, CONFIG).any()
    assert not TASK.is_valid(x, torch.zeros_like(y), CONFIG).any()


def test_files_are_read_and_bad_lines_named(tmp_path: Path) -> None:
    puzzles, _ = TASK.make(CONFIG)
    path = tmp_path / "boards.csv"
    write_puzzles(path, puzzles)
    assert TASK.read(path, CONFIG) == puzzles
    (tmp_path / "boards.txt").write_text("\n".join(puzzle.question for puzzle in puzzles))
    assert [p.answer for p in TASK.read(tmp_path / "boards.txt", CONFIG)] == [
        puzzle.answer for puzzle in puzzles
    ]
    asked, other = puzzles[0].question, puzzles[0].answer[::-1]
    for question, answer, message in (
        (asked, other, "line 2: The answer is not a valid placement"),
        (asked[1:], "", "line 2: Bad question .* must have 64 cells, got 63"),
        (asked[1:] + "x", "", r"may hold the characters \. - Q, one a cell: got 'x' at \(row "),
        ("QQ" + "." * 62, "", "rows 1 and 1 attack each other"),
        ("-" * 8 + "." * 56, "", "have no place on this board"),
    ):
        path.write_text(f"source,question,answer,rating\nmine,{question},{answer},\n")
        with pytest.raises(ValueError, match=message):
            TASK.read(path, CONFIG)


@pytest.mark.parametrize(
    ("side", "count", "message"), [(9, 0, "0 < min <= max < 9"), (3, 1, "`side` must be")]
)
def test_impossible_options_are_refused(side: int, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CONFIG.changed(side=side, min_queens=count)


def test_what_cannot_be_drawn_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.queens.board._MAX_DRAWS", 20)
    with pytest.raises(ValueError, match=r"No board of 5x5 cells and 2 queens .* in 20 draws"):
        QueensRecipe(5, 2, 2, 0, held_out=True).draw(0)


@pytest.mark.slow
def test_commands_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preset", "tiny", "--steps", "150", "--batch-size", "16", "--seed", "1"]
    assert main(["train", *options, "--out", "run"]) == 0
    model = ["--checkpoint", "run/model.safetensors"]
    assert main(["eval", *model, "--quick", "--attempts", "2"]) == 0
    assert "boards" in capsys.readouterr().out
    board = TASK.example(TASK.presets["tiny"])
    code = main(["solve", board, *model, "--draw", "pictures"])
    out = capsys.readouterr().out
    assert "solver steps, residual" in out
    assert (code == 0) == ("NOT a valid placement" not in out)
    with Image.open(tmp_path / "pictures/convergence.gif") as image:
        assert image.n_frames > 1  # type: ignore[attr-defined]
    assert main(["solve", board]) == 2
    assert "`python -m examples.queens train --preset tiny`" in capsys.readouterr().err
