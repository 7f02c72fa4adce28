"""Pictures of the convergence of one Sudoku: a sheet of grids, and an animation."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from tasks.puzzles.pictures import RED, RED_TINT, Frame, animate, caption, check, draw_sheet
from tasks.reports.style import BLUE
from tasks.sudoku.board import Board

CLUE_TINT = "#EFEFEF"
LEGEND = ("black on grey: clue", "blue: right", "red on pink: wrong", "small and pale: unsure")


def draw_convergence(
    board: Board,
    question: Sequence[int],
    frames: Sequence[Frame],
    answer: Sequence[int],
    path: Path,
    title: str = "",
) -> Path:
    """Draw up to eight moments of a solve into one PNG.

    They run evenly from the first frame to the one where the digits settle; the last frame
    ends the sheet.

    Args:
        board: The geometry.
        question: The clues, one digit a cell, 0 for a blank.
        frames: (step, relative residual, probabilities) in order; at least one. A residual
            that is not finite counts as not measured; probabilities are (cells, side).
        answer: The solution, one digit a cell.
        path: The PNG, in a folder that exists.
        title: Above the sheet.

    Returns:
        `path`.

    Raises:
        ValueError: No frames, or a grid or a tensor that does not fit the board.
        OSError: The file cannot be written.
    """
    _check(board, question, frames, answer)

    def draw(axes: Axes, frame: Frame) -> None:
        _draw(axes, board, question, frame, answer)

    return draw_sheet(frames, draw, path, LEGEND, title)


def animate_convergence(
    board: Board,
    question: Sequence[int],
    frames: Sequence[Frame],
    answer: Sequence[int],
    path: Path,
) -> Path:
    """Draw every moment of a solve into an endless GIF that pauses on its last frame.

    Args and errors are those of `draw_convergence`; 33 frames of a 9x9 board take about
    0.1 MB.
    """
    _check(board, question, frames, answer)

    def draw(axes: Axes, frame: Frame) -> None:
        _draw(axes, board, question, frame, answer)

    return animate(frames, draw, path)


def _check(
    board: Board, question: Sequence[int], frames: Sequence[Frame], answer: Sequence[int]
) -> None:
    shape, place = (board.num_cells, board.side), f"on a {board.name} board"
    check(frames, shape, place, question=question, answer=answer)


def _draw(
    axes: Axes, board: Board, question: Sequence[int], frame: Frame, answer: Sequence[int]
) -> None:
    """Draw one grid with its caption; the y axis points down, as rows do."""
    confidences, classes = (column.tolist() for column in frame[2].detach().max(-1))
    num_blanks = num_right = 0
    for cell in range(board.num_cells):
        if question[cell]:
            _draw_cell(axes, board, cell, question[cell], "black", CLUE_TINT)
            continue
        digit = classes[cell] + 1
        right = digit == answer[cell]
        num_blanks, num_right = num_blanks + 1, num_right + right
        color, tint = (BLUE, "white") if right else (RED, RED_TINT)
        # From a guess among all digits to certainty.
        sure = (confidences[cell] * board.side - 1) / (board.side - 1)
        _draw_cell(axes, board, cell, digit, color, tint, sure)
    _draw_lines(axes, board)
    axes.set_title(f"{caption(frame)}\n{num_right} of {num_blanks} blanks right", fontsize=9)
    axes.set(xlim=(-0.1, board.side + 0.1), ylim=(board.side + 0.1, -0.1), aspect="equal")


def _draw_cell(
    axes: Axes,
    board: Board,
    cell: int,
    digit: int,
    color: str,
    tint: str,
    sure: float | None = None,
) -> None:
    """Draw a digit on its tint; `sure` in [0, 1] sets size and opacity, and is None for a clue."""
    row, column = board.row_of[cell], board.column_of[cell]
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=tint, linewidth=0))
    strength = 1.0 if sure is None else min(max(sure, 0.0), 1.0)
    axes.text(
        column + 0.5,
        row + 0.53,
        str(digit),
        color=color,
        weight="bold" if sure is None else "normal",
        alpha=0.4 + 0.6 * strength,
        fontsize=(70 + 35 * strength) / board.side,
        ha="center",
        va="center_baseline",
    )


def _draw_lines(axes: Axes, board: Board) -> None:
    side = board.side
    for i in range(side + 1):
        across, down = (2.0 if i % box == 0 else 0.4 for box in (board.box_cols, board.box_rows))
        axes.plot([i, i], [0, side], color="black", linewidth=across, solid_capstyle="projecting")
        axes.plot([0, side], [i, i], color="black", linewidth=down, solid_capstyle="projecting")
