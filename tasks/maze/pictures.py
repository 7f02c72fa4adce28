"""Pictures of mazes: the moments of a solve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle

from implicit.diagnostics.style import BLUE, GREEN, ORANGE
from tasks.maze.maze import FREE, GOAL, PATH, START, SYMBOLS, WALL
from tasks.puzzles.pictures import RED, Frame, GridPicture, caption, draw_sheet

# Two more of Okabe and Ito's colours.
PURPLE, YELLOW = "#CC79A7", "#F0E442"
GROUND = {WALL: "#3A3A3A", FREE: "#FFFFFF", START: GREEN, GOAL: PURPLE}
# Of the larger picture.
MOMENTS, INCHES = 4, 3.6


def draw_maze(frames: Sequence[Frame], picture: GridPicture, path: Path) -> Path:
    """Draw a maze with the path in it at four moments, the last of which is the answer.

    Args and errors are those of `draw_sheet`.
    """
    return draw_sheet(frames, picture, path, MOMENTS, INCHES)


@dataclass(frozen=True)
class MazePicture(GridPicture):
    """A moment of a solve, as a maze with the predicted path in it."""

    unsure = "pale: unsure"

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
            y=1.0,
        )

    def legend(self, frames: Sequence[Frame]) -> list[Patch]:
        """See `GridPicture`."""
        found = torch.stack([frame[2].argmax(-1).cpu() for frame in frames])
        answer = torch.tensor(self.answer)
        path, truth = found == PATH, answer == PATH
        kinds = {
            "path, right": (BLUE, path & truth),
            "path, wrong": (RED, path & ~truth),
            "path missed": (YELLOW, ~path & truth),
            "wrong otherwise": (ORANGE, ~path & ~truth & (found != answer)),
        }
        return [
            Patch(facecolor=color, label=label)
            for label, (color, cells) in kinds.items()
            if bool(cells.any())
        ]


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
