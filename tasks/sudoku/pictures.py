"""One puzzle on its way to the fixed point: a sheet of grids, and the same as a moving picture."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from tasks.common.plots import BLUE, DPI, save
from tasks.sudoku.board import Board

# Step, relative residual (NaN if not measured), and probabilities of shape (cells, side).
Frame = tuple[int, float, Tensor]

RED, RED_TINT, CLUE_TINT = "#C1121F", "#FBE3E4", "#EFEFEF"
LEGEND = (
    "black on grey: clue     blue: right     red on pink: wrong     small and pale: the model is unsure"
)
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
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # pyright: ignore
    grids = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grids:
        axes.axis("off")
    for axes, frame in zip(grids, chosen, strict=False):
        _draw(axes, board, question, frame, answer)
    legend = LEGEND if columns > 2 else LEGEND.replace("     red", "\nred")
    figure.supxlabel(legend, fontsize=8.5 if columns > 2 else 7.5, color="0.35")
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
    0.4 MB.
    """
    _check(board, question, frames, answer)
    figure = Figure(figsize=(3.4, 3.9), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    images = []
    figure.set_dpi(GIF_DPI)
    for frame in frames:
        axes.clear()
        axes.axis("off")
        _draw(axes, board, question, frame, answer)
        canvas.draw()
        images.append(Image.fromarray(_pixels(canvas)).convert("RGB"))
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
