"""One puzzle on its way to the fixed point: a sheet of grids, and the same as a moving picture."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from tasks.common.plots import BLUE, DPI, save
from tasks.sudoku.board import Board

# Step, relative residual (NaN if not measured), and probabilities of shape (cells, side).
Frame = tuple[int, float, Tensor]

RED, RED_TINT, CLUE_TINT = "#C1121F", "#FBE3E4", "#EFEFEF"
LEGEND = ("black on grey: clue", "blue: right", "red on pink: wrong", "small and pale: unsure")
SHEET, COLUMNS = 8, 4
GIF_DPI, GIF_COLORS, FRAME_MS, HOLD_MS = 90, 64, 200, 3000


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
    chosen = _moments(frames)
    columns = min(COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    # One grid alone would be narrower than the legend.
    width, height = max(2.6 * columns, 3.6), 3.05 * rows + 0.3 + 0.35 * bool(title)
    figure = Figure(figsize=(width, height), layout=_layout())
    grids = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grids:
        axes.axis("off")
    for axes, frame in zip(grids, chosen, strict=False):
        _draw(axes, board, question, frame, answer)
    ends = "     ", ("     " if columns > 1 else "\n"), "     "
    legend = "".join(part + end for part, end in zip(LEGEND, (*ends, ""), strict=True))
    figure.supxlabel(legend, fontsize=8.5, color="0.35")
    if title:
        figure.suptitle(title, fontsize=12)
    return save(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI))


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
    figure = Figure(figsize=(3.4, 3.9), dpi=GIF_DPI, layout=_layout())
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    images = []
    for frame in frames:
        axes.clear()
        axes.axis("off")
        _draw(axes, board, question, frame, answer)
        canvas.draw()
        pixels = bytes(canvas.buffer_rgba())
        image = Image.frombytes("RGBA", canvas.get_width_height(), pixels)
        images.append(image.convert("RGB"))
    first, *others = _share_palette(images)
    durations = [FRAME_MS] * len(others) + [HOLD_MS]
    return save(
        path,
        lambda temporary: first.save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=durations,
            loop=0,
        ),
    )


def _check(
    board: Board, question: Sequence[int], frames: Sequence[Frame], answer: Sequence[int]
) -> None:
    if not frames:
        raise ValueError("`frames` must hold at least one frame, got none.")
    for name, grid in (("question", question), ("answer", answer)):
        if len(grid) != board.num_cells:
            raise ValueError(
                f"`{name}` must have {board.num_cells} cells on a {board.name} board, got "
                f"{len(grid)}."
            )
    shape = (board.num_cells, board.side)
    for step, _, probabilities in frames:
        if tuple(probabilities.shape) != shape:
            raise ValueError(
                f"The probabilities of step {step} must have shape {shape}, one row a cell: got "
                f"{tuple(probabilities.shape)}."
            )


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)  # inches around and between grids


def _moments(frames: Sequence[Frame]) -> list[Frame]:
    """Frames spread evenly up to the one from which the digits stay, and the last one."""
    if len(frames) <= SHEET:
        return list(frames)
    last = len(frames) - 1
    final = frames[last][2].argmax(-1)
    settled = last
    while settled and bool((frames[settled - 1][2].argmax(-1) == final).all()):
        settled -= 1
    count = SHEET - 1
    spread = {round(i * settled / (count - 1)) for i in range(count)}
    return [frames[i] for i in sorted(spread | {last})]


def _draw(
    axes: Axes, board: Board, question: Sequence[int], frame: Frame, answer: Sequence[int]
) -> None:
    """One grid with its caption; y runs down, as rows do."""
    step, residual, probabilities = frame
    confidences, classes = (column.tolist() for column in probabilities.detach().max(-1))
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
    measured = f"residual {residual:.1e}" if math.isfinite(residual) else "residual not measured"
    axes.set_title(f"step {step}, {measured}\n{num_right} of {num_blanks} blanks right", fontsize=9)
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
    """A digit on its tint; `sure` in [0, 1] sets its size and opacity, None makes it a clue."""
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


def _share_palette(images: Sequence[Image.Image]) -> list[Image.Image]:
    """The images in one palette, chosen from all of them: one a frame would flicker, and cost."""
    width, height = images[0].size
    strip = Image.new("RGB", (width, height * len(images)))
    for i, image in enumerate(images):
        strip.paste(image, (0, i * height))
    palette = strip.quantize(GIF_COLORS, dither=Image.Dither.NONE)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
