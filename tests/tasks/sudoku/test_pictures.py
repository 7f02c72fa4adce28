"""Pictures of a solve: the right moments, whole files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F

from tasks.puzzles.pictures import HOLD_MS, RED, Frame, GridPicture, animate, draw_sheet, moments
from tasks.reports.plots import BLUE
from tasks.sudoku.board import Board, parse
from tasks.sudoku.solver import search
from tasks.sudoku.task import SudokuTask

QUESTIONS = {
    4: "1... ..3. .4.. ...2",
    9: "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
}


def solve(side: int, num_frames: int) -> tuple[list[Frame], GridPicture]:
    """Frames whose cells become right one after the other, and how they are drawn."""
    board = Board.of(side)
    question = parse(QUESTIONS[side])
    [answer] = map(list, search(question, board).solutions)
    right = F.one_hot(torch.tensor(answer) - 1, side).double()
    frames = []
    for step in range(num_frames):
        reached = torch.arange(board.num_cells) * 20 < step * board.num_cells
        logits = torch.where(reached[:, None], 4 * right, -2 * right)
        residual = 0.5**step if step else float("nan")
        frames.append((step, residual, logits.softmax(-1)))
    return frames, SudokuTask().picture(question, answer)


Draw = Callable[[list[Frame], GridPicture, Path], Path]
both = pytest.mark.parametrize("draw", [draw_sheet, animate])


@pytest.mark.parametrize(("side", "num_frames"), [(4, 1), (4, 3), (9, 33)])
def test_sheet(side: int, num_frames: int, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    assert draw_sheet(*solve(side, num_frames), path) == path
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(path) as image:
        image.load()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("side", "num_frames"), [(4, 1), (4, 3), (9, 6)])
def test_animation_has_every_frame_and_holds_the_last(
    side: int, num_frames: int, tmp_path: Path
) -> None:
    path = tmp_path / "solve.gif"
    assert animate(*solve(side, num_frames), path) == path
    assert path.read_bytes().startswith(b"GIF89a")
    assert path.stat().st_size < 1_000_000
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == num_frames
        image.seek(num_frames - 1)
        assert image.info["duration"] == HOLD_MS
    assert list(tmp_path.iterdir()) == [path]


def test_sheet_shows_the_way_to_the_answer_and_the_end() -> None:
    frames, _ = solve(9, 33)
    steps = [step for step, _, _ in moments(frames)]
    # The digits settle at step 20.
    assert len(steps) == 5  # in one row
    assert steps[0] == 0
    assert steps[-2:] == [20, 32]
    assert steps == sorted(set(steps))


def test_sheet_of_a_solve_that_never_moves() -> None:
    frames, _ = solve(4, 1)
    still = [(step, 0.1, frames[0][2]) for step in range(20)]
    assert [step for step, _, _ in moments(still)] == [0, 19]


def test_the_legend_has_what_occurs() -> None:
    frames, picture = solve(4, 21)
    assert [patch.get_label() for patch in picture.legend(frames)] == ["clue", "right", "wrong"]
    assert [patch.get_label() for patch in picture.legend(frames[-1:])] == ["clue", "right"]


def test_each_digit_tells_what_it_is() -> None:
    frames, picture = solve(4, 11)
    question, answer = picture.question, picture.answer
    step, residual, probabilities = frames[10]
    axes = Figure().subplots()
    picture.draw(axes, (step, residual, probabilities))
    assert len(axes.texts) == 16
    digits = (probabilities.argmax(-1) + 1).tolist()
    for cell, text in enumerate(axes.texts):
        if question[cell]:
            expected = str(question[cell]), "#000000", "bold"
        else:
            color = BLUE if digits[cell] == answer[cell] else RED
            expected = str(digits[cell]), color.lower(), "normal"
        assert (text.get_text(), to_hex(text.get_color()), text.get_weight()) == expected
    assert {to_hex(text.get_color()) for text in axes.texts} == {
        "#000000",
        BLUE.lower(),
        RED.lower(),
    }
    blanks = [cell for cell in range(16) if not question[cell]]
    num_right = sum(digits[cell] == answer[cell] for cell in blanks)
    assert axes.get_title() == (
        f"step 10, residual 9.8e-04\n{num_right} of {len(blanks)} blanks right"
    )


def test_unsure_digits_are_small_and_pale() -> None:
    _, picture = solve(4, 1)
    sure = F.one_hot(torch.tensor(picture.answer) - 1, 4).double()
    sure[1] = 0.6 * sure[1] + 0.1
    axes = Figure().subplots()
    replace(picture, question=[0] * 16).draw(axes, (0, float("nan"), sure))
    certain, unsure = axes.texts[:2]
    assert unsure.get_alpha() < certain.get_alpha() == 1
    assert unsure.get_fontsize() < certain.get_fontsize()
    assert axes.get_title() == "step 0, residual not measured\n16 of 16 blanks right"


@both
def test_unwritable_folder(draw: Draw, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing/a\.out cannot be written .*exists"):
        draw(*solve(4, 2), tmp_path / "missing" / "a.out")
    assert list(tmp_path.iterdir()) == []
