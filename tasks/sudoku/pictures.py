"""One puzzle on its way to the fixed point: a sheet of grids, and the same as a moving picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tasks.common.plots import BLUE, ORANGE, save
from tasks.sudoku.board import Board

# Step, relative residual, and probabilities of shape (cells, side).
Frame = tuple[int, float, Tensor]
SHEET, HOLD_SECONDS, FRAMES_PER_SECOND = 8, 3, 5


def draw_convergence(
    board: Board,
    question: Sequence[int],
    frames: Sequence[Frame],
    answer: Sequence[int],
    path: Path,
) -> Path:
    """Up to eight moments of a solve in one PNG.

    Clues are black; the model's digits are blue where right and orange where wrong, and the
    paler the less sure.
    """
    chosen = _moments(frames, question, answer)
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, frame in zip(axes, chosen, strict=False):
        _draw(axis, board, question, frame, answer)
    return save(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def animate_convergence(
    board: Board,
    question: Sequence[int],
    frames: Sequence[Frame],
    answer: Sequence[int],
    path: Path,
) -> Path:
    """Every moment of a solve as an animated GIF whose last frame is held."""
    figure = Figure(figsize=(3.4, 3.8), layout="constrained")
    axis = figure.subplots()
    held = [*frames, *[frames[-1]] * (HOLD_SECONDS * FRAMES_PER_SECOND)]

    def show(frame: Frame) -> list[object]:
        axis.clear()
        axis.axis("off")
        _draw(axis, board, question, frame, answer)
        return []

    animation = FuncAnimation(figure, show, frames=held, init_func=lambda: [], blit=False)  # type: ignore[arg-type]
    # The format follows the file's ending, which a temporary name must keep.
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    animation.save(str(temporary), writer=PillowWriter(fps=FRAMES_PER_SECOND), dpi=80)
    temporary.replace(path)
    return path


def _moments(
    frames: Sequence[Frame], question: Sequence[int], answer: Sequence[int]
) -> list[Frame]:
    """The first frame, the one where the answer is reached, and others spread before it."""
    counts = [_num_right(frame, question, answer) for frame in frames]
    solved = [i for i, (right, blanks) in enumerate(counts) if right == blanks]
    reached = solved[0] if solved else len(frames) - 1
    count = min(SHEET, reached + 1)
    chosen = sorted({round(i * reached / max(count - 1, 1)) for i in range(count)})
    if len(chosen) < SHEET and chosen[-1] < len(frames) - 1:
        chosen.append(len(frames) - 1)
    return [frames[i] for i in chosen]


def _num_right(frame: Frame, question: Sequence[int], answer: Sequence[int]) -> tuple[int, int]:
    digits = (frame[2].argmax(-1) + 1).tolist()
    blanks = [i for i, digit in enumerate(question) if digit == 0]
    return sum(digits[i] == answer[i] for i in blanks), len(blanks)


def _draw(
    axis: Axes, board: Board, question: Sequence[int], frame: Frame, answer: Sequence[int]
) -> None:
    step, residual, probabilities = frame
    side = board.side
    for i in range(side + 1):
        across = 1.8 if i % board.box_cols == 0 else 0.4
        down = 1.8 if i % board.box_rows == 0 else 0.4
        axis.plot([i, i], [0, side], color="black", linewidth=across)
        axis.plot([0, side], [i, i], color="black", linewidth=down)
    for cell in range(board.num_cells):
        row, column = divmod(cell, side)
        digit, sure = question[cell], 1.0
        color, weight = "black", "bold"
        if digit == 0:
            sure, index = (value.item() for value in probabilities[cell].max(0))
            digit = int(index) + 1
            color, weight = (BLUE if digit == answer[cell] else ORANGE), "normal"
        place = (column + 0.5, row + 0.54)
        axis.text(
            *place, str(digit), color=color, weight=weight, alpha=0.25 + 0.75 * float(sure),
            ha="center", va="center", fontsize=90 / side,
        )  # fmt: skip
    right, blanks = _num_right(frame, question, answer)
    measured = f"residual {residual:.0e}" if residual == residual else "the proposal"
    axis.set_title(f"step {step}, {measured}\n{right} of {blanks} blanks right", fontsize=9)
    axis.set(xlim=(-0.1, side + 0.1), ylim=(side + 0.1, -0.1), aspect="equal")
