"""Pictures of mazes: one answer, and the convergence of a solve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from tasks.maze.maze import FREE, GOAL, PATH, START, SYMBOLS, WALL
from tasks.puzzles.pictures import RED, Frame, GridPicture, caption
from tasks.reports.plots import BLUE, GREEN, ORANGE, new_figure, save_png

# Two more of Okabe and Ito's colours.
PURPLE, YELLOW = "#CC79A7", "#F0E442"
GROUND = {WALL: "#3A3A3A", FREE: "#FFFFFF", START: GREEN, GOAL: PURPLE}
LEGEND = ("blue: path, right", "red: path, wrong", "yellow: path missed", "orange: wrong otherwise")


def draw_maze(
    question: Sequence[int], answer: Sequence[int], truth: Sequence[int], path: Path
) -> Path:
    """Draw one maze with a path into a PNG.

    Args:
        question: Codes.
        answer: Codes of the path to be drawn, right or wrong.
        truth: Codes of the right answer: cells where `answer` has something else stand out.
        path: The PNG, in a folder that exists.

    Returns:
        `path`.

    Raises:
        OSError: The file cannot be written.
    """
    figure = new_figure(5, 5.2)
    axes = figure.subplots()
    axes.axis("off")
    size = 250 / math.isqrt(len(question))
    _draw_cells(axes, question, answer, [1.0] * len(answer), truth, letter_size=size)
    figure.supxlabel("    ".join(LEGEND), fontsize=7.5, color="0.35")
    return save_png(figure, path)


@dataclass(frozen=True)
class MazePicture(GridPicture):
    """A moment of a solve, as a maze with the predicted path in it."""

    legend = (*LEGEND, "pale: unsure")

    def draw(self, axes: Axes, frame: Frame) -> None:
        """See `GridPicture`."""
        confidences, classes = (column.tolist() for column in frame[2].detach().max(-1))
        size = 135 / self.side
        _draw_cells(axes, self.question, classes, confidences, self.answer, letter_size=size)
        path = [cell for cell, code in enumerate(self.answer) if code == PATH]
        num_right = sum(classes[cell] == PATH for cell in path)
        num_extra = classes.count(PATH) - num_right
        axes.set_title(
            f"{caption(frame)}\n{num_right} of {len(path)} path cells, {num_extra} elsewhere",
            fontsize=9,
        )


def _draw_cells(
    axes: Axes,
    question: Sequence[int],
    found: Sequence[int],
    confidences: Sequence[float],
    answer: Sequence[int],
    letter_size: float,
) -> None:
    """Draw the maze and the predicted path over it; the y axis points down, as rows do."""
    side = math.isqrt(len(question))
    colors = [_color(*cell) for cell in zip(question, found, confidences, answer, strict=True)]
    axes.imshow(np.array(colors).reshape(side, side, 3), interpolation="nearest")
    border = Rectangle((-0.5, -0.5), side, side, fill=False, edgecolor=GROUND[WALL], clip_on=False)
    axes.add_patch(border)
    for cell, code in enumerate(question):
        if code in (START, GOAL):
            row, column = divmod(cell, side)
            axes.text(
                column, row, SYMBOLS[code], color="white", weight="bold", fontsize=letter_size,
                ha="center", va="center_baseline",
            )  # fmt: skip


def _color(asked: int, got: int, confidence: float, right: int) -> np.ndarray:
    """Red, green and blue of a cell, each in [0, 1]."""
    ground = np.array(to_rgb(GROUND[asked]))
    if got == PATH:
        # From a guess among all symbols to certainty.
        sure = (confidence * len(SYMBOLS) - 1) / (len(SYMBOLS) - 1)
        hue, weight = (BLUE if right == PATH else RED), 0.4 + 0.6 * min(max(sure, 0.0), 1.0)
    elif right == PATH:
        hue, weight = YELLOW, 1.0
    elif got != right:
        hue, weight = ORANGE, 0.6
    else:
        return ground
    return weight * np.array(to_rgb(hue)) + (1 - weight) * ground
