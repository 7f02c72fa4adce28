"""Pictures of a solve: the right moments, whole files."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F

from tasks.puzzles.pictures import (
    HOLD_MS,
    RED,
    Frame,
    GridPicture,
    animate,
    draw_sheet,
    moments,
)
from tasks.reports.plots import BLUE
from tasks.sudoku.board import Board, parse
from tasks.sudoku.pictures import SudokuPicture
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


def test_sheet_of_a_solve_that_ends_before_it_settles_is_full() -> None:
    frames, _ = solve(9, 21)
    # The digits change from step 19 to step 20, which is the last here.
    assert [step for step, _, _ in moments(frames)] == [0, 5, 10, 15, 20]


def test_sheet_of_a_solve_that_never_moves() -> None:
    frames, _ = solve(4, 1)
    still = [(step, 0.1, frames[0][2]) for step in range(20)]
    assert [step for step, _, _ in moments(still)] == [0, 19]


def test_the_legend_has_what_occurs() -> None:
    frames, picture = solve(4, 21)
    everything, end = plain(picture).legend(frames), picture.legend(frames[-1:])
    assert [patch.get_label() for patch in everything] == ["clue", "right", "wrong"]
    assert [patch.get_label() for patch in end] == ["clue", "right"]
    # With candidates, only a digit of which the model is sure is wrong.
    assert [patch.get_label() for patch in picture.legend(frames)] == ["clue", "right"]
    wrong = (0, 0.1, frames[-1][2].roll(1, -1))
    assert [patch.get_label() for patch in picture.legend([wrong])] == ["clue", "wrong"]


def test_each_digit_tells_what_it_is() -> None:
    frames, picture = solve(4, 11)
    question, answer = picture.question, picture.answer
    step, residual, probabilities = frames[10]
    glyphs = GridPicture.glyphs(plain(picture), (step, residual, probabilities))
    assert len(glyphs) == 16
    digits = (probabilities.argmax(-1) + 1).tolist()
    for cell, glyph in enumerate(glyphs):
        if question[cell]:
            expected = str(question[cell]), "black", True
        else:
            color = BLUE if digits[cell] == answer[cell] else RED
            expected = str(digits[cell]), color, False
        assert (glyph.character, glyph.color, glyph.bold) == expected
        assert (glyph.x, glyph.y) == (cell % 4 + 0.5, cell // 4 + 0.5)
    assert {glyph.color for glyph in glyphs} == {"black", BLUE, RED}


def plain(picture: GridPicture) -> GridPicture:
    """The picture of a board that is too large for candidates."""
    kept = {field.name: getattr(picture, field.name) for field in fields(picture)}
    return GridPicture(**kept)


def test_the_title_counts_right_blanks() -> None:
    frames, picture = solve(4, 11)
    axes = Figure().subplots()
    picture.draw(axes, frames[10])
    digits = (frames[10][2].argmax(-1) + 1).tolist()
    blanks = [cell for cell in range(16) if not picture.question[cell]]
    num_right = sum(digits[cell] == picture.answer[cell] for cell in blanks)
    assert axes.get_title() == (
        f"step 10, residual 9.8e-04\n{num_right} of {len(blanks)} blanks right"
    )
    picture.draw(axes, frames[0])
    assert axes.get_title().startswith("step 0, residual not measured\n")


def test_without_candidates_unsure_digits_are_small_and_pale() -> None:
    _, picture = solve(4, 1)
    sure = F.one_hot(torch.tensor(picture.answer) - 1, 4).double()
    sure[1] = 0.6 * sure[1] + 0.1
    glyphs = plain(replace(picture, question=[0] * 16)).glyphs((0, 0.1, sure))
    assert glyphs[1].opacity < glyphs[0].opacity == 1
    assert glyphs[1].size < glyphs[0].size


def test_a_cell_that_is_not_sure_shows_its_candidates() -> None:
    """Small, at their places in the box's order, and the likelier the darker."""
    _, picture = solve(9, 1)
    probabilities = F.one_hot(torch.tensor(picture.answer) - 1, 9).double()
    probabilities[0] = torch.tensor([0.0, 0.3, 0.05, 0.05, 0.2, 0.1, 0.1, 0.15, 0.05])
    large, *_ = replace(picture, question=[1] * 81).glyphs((0, 0.1, probabilities))
    blank = replace(picture, question=[0] * 81, answer=[5] * 81)
    glyphs = blank.glyphs((0, 0.1, probabilities))
    candidates = glyphs[:8]
    assert [glyph.character for glyph in candidates] == list("23456789")  # 1 is ruled out
    assert len(glyphs) == 8 + 80
    assert all(glyph.size < large.size / 1.5 for glyph in candidates)
    two, three, four, *_, nine = candidates
    assert two.y == three.y < four.y < nine.y < 1
    assert 0 < four.x < two.x < three.x == nine.x < 1
    assert [glyph.color == BLUE for glyph in candidates] == [c == "5" for c in "23456789"]
    opacities = {glyph.character: glyph.opacity for glyph in candidates}
    assert opacities["2"] > opacities["5"] > opacities["9"] > 0.1
    # No colour says that it is wrong: there is no answer yet.
    assert blank.is_sure(probabilities).tolist() == [False] + 80 * [True]
    assert blank.legend([(0, 0.1, probabilities[:1].expand(81, 9))]) == []


def test_a_board_beyond_nine_has_no_candidates() -> None:
    task = SudokuTask()
    assert type(task.picture([0] * 256, [1] * 256)) is GridPicture
    assert isinstance(task.picture([0] * 36, [1] * 36), SudokuPicture)


@pytest.mark.parametrize("measured", [True, False])
def test_the_animation_has_the_residual_beside_the_board(
    measured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark moves along the curve, and the tolerance is drawn; a long solve is thinned out."""
    monkeypatch.setattr("tasks.puzzles.pictures.SHOWN", 5)
    frames, picture = solve(4, 129)
    if not measured:
        frames = [(step, float("nan"), probabilities) for step, _, probabilities in frames[:2]]
    pictures = []
    for rtol in (1e-5, None):
        path = animate(frames, picture, tmp_path / "solve.gif", rtol)
        assert path.stat().st_size < 600_000
        with Image.open(path) as image:
            assert getattr(image, "n_frames", 1) == (6 if measured else 2)
            moments = []
            for number in (0, getattr(image, "n_frames", 1) - 1):
                image.seek(number)
                # The right part, below the title and above the legend.
                box = image.width // 2, 40, image.width, image.height - 60
                moments.append(image.convert("RGB").crop(box))
        pictures.append(moments)
    (first, last), (without, _) = pictures
    assert (first.tobytes() != last.tobytes()) == measured
    assert first.tobytes() != without.tobytes()


@both
def test_unwritable_folder(draw: Draw, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing/a\.out cannot be written .*exists"):
        draw(*solve(4, 2), tmp_path / "missing" / "a.out")
    assert list(tmp_path.iterdir()) == []
