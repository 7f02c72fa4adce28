"""One puzzle on its way to the fixed point: a sheet of moments, and a moving picture of all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle
from PIL import Image
from torch import Tensor

from tasks.reports.plots import BLUE, save, save_png

# Step, relative residual (NaN if not measured), and probabilities of shape (cells, classes).
Frame = tuple[int, float, Tensor]

RED, RED_TINT = "#C1121F", "#FBE3E4"  # what is wrong
GIVEN_TINT = "#EFEFEF"
SHEET = 5
GIF_DPI, GIF_COLORS, FRAME_MS, HOLD_MS = 90, 64, 200, 3000


@dataclass(frozen=True)
class GridPicture:
    """A moment of a solve, as the characters of the most likely symbols.

    Args:
        side: Cells of a row.
        question: Symbols; 0 where none is given.
        answer: Symbols of the right answer.
        characters: Of all symbols, in order.
        first_symbol: The symbol that class 0 stands for; the others follow.
        box: Rows and columns between thick lines; by default all.

    Attributes:
        unsure: What the legend says of a cell of which the model is not sure.
    """

    unsure: ClassVar[str] = "small and pale: unsure"

    side: int
    question: Sequence[int]
    answer: Sequence[int]
    characters: str
    first_symbol: int = 0
    box: tuple[int, int] | None = None

    def draw(self, axes: Axes, frame: Frame) -> None:
        """Draw a frame and its title into empty axes; the y axis points down, as rows do."""
        confidences, classes = (column.tolist() for column in frame[2].detach().max(-1))
        num_classes = frame[2].shape[1]
        num_blanks = num_right = 0
        for cell, asked in enumerate(self.question):
            if asked:
                self._draw_cell(axes, cell, asked, "black", GIVEN_TINT)
                continue
            symbol = classes[cell] + self.first_symbol
            right = symbol == self.answer[cell]
            num_blanks, num_right = num_blanks + 1, num_right + right
            color, tint = (BLUE, "white") if right else (RED, RED_TINT)
            # From a guess among all symbols to certainty.
            sure = (confidences[cell] * num_classes - 1) / (num_classes - 1)
            self._draw_cell(axes, cell, symbol, color, tint, sure)
        self._draw_lines(axes)
        axes.set_title(f"{caption(frame)}\n{num_right} of {num_blanks} blanks right", fontsize=9)
        axes.set(xlim=(-0.1, self.side + 0.1), ylim=(self.side + 0.1, -0.1), aspect="equal")

    def legend(self, frames: Sequence[Frame]) -> list[Patch]:
        """Swatches of what occurs in some frames."""
        asked = torch.tensor(self.question) > 0
        answer = torch.tensor(self.answer) - self.first_symbol
        right = torch.stack([frame[2].argmax(-1).cpu() == answer for frame in frames])[:, ~asked]
        kinds = (
            ("clue", GIVEN_TINT, "black", bool(asked.any())),
            ("right", "white", BLUE, bool(right.any())),
            ("wrong", RED_TINT, RED, not bool(right.all())),
        )
        return [
            Patch(facecolor=face, edgecolor=edge, label=label)
            for label, face, edge, occurs in kinds
            if occurs
        ]

    def _draw_cell(
        self, axes: Axes, cell: int, symbol: int, color: str, tint: str, sure: float | None = None
    ) -> None:
        """Draw a symbol on its tint; `sure` sets size and opacity, and is None if it is given."""
        row, column = divmod(cell, self.side)
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=tint, linewidth=0))
        strength = 1.0 if sure is None else min(max(sure, 0.0), 1.0)
        axes.text(
            column + 0.5, row + 0.53, self.characters[symbol], color=color,
            weight="bold" if sure is None else "normal", alpha=0.4 + 0.6 * strength,
            fontsize=(70 + 35 * strength) / self.side, ha="center", va="center_baseline",
        )  # fmt: skip

    def _draw_lines(self, axes: Axes) -> None:
        side = self.side
        rows, columns = self.box or (side, side)
        for i in range(side + 1):
            across, down = (2.0 if i % count == 0 else 0.4 for count in (columns, rows))
            for ends, width in ((([i, i], [0, side]), across), (([0, side], [i, i]), down)):
                axes.plot(*ends, color="black", linewidth=width, solid_capstyle="projecting")


def draw_sheet(
    frames: Sequence[Frame],
    picture: GridPicture,
    path: Path,
    most: int = SHEET,
    inches: float = 2.6,
) -> Path:
    """Draw some moments of a solve into one PNG, in one row; see `moments`.

    Args:
        frames: In order; at least one. A residual that is not finite counts as not measured;
            probabilities are (cells, classes).
        picture: Draws one of them.
        path: The PNG, in a folder that exists.
        most: Moments, at most.
        inches: Width of one.

    Returns:
        `path`.

    Raises:
        OSError: The file cannot be written.
    """
    chosen = moments(frames, most)
    # One grid alone would be narrower than the legend.
    width = max(inches * len(chosen), 3.6)
    figure = Figure(figsize=(width, inches + 0.75), layout=_layout())
    for axes, frame in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        axes.axis("off")
        picture.draw(axes, frame)
    # An empty swatch stands before what no colour shows.
    handles = [*picture.legend(chosen), Patch(alpha=0, label=picture.unsure)]
    columns = len(handles) if len(chosen) > 1 else 2
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5,
        handlelength=1.0, handleheight=1.0, labelcolor="0.25",
    )  # fmt: skip
    return save_png(figure, path)


def animate(frames: Sequence[Frame], picture: GridPicture, path: Path) -> Path:
    """Draw every moment of a solve into an endless GIF that pauses on its last frame.

    Args and errors are the first ones of `draw_sheet`. 33 frames of 81 cells take about 0.1 MB.
    """
    figure = Figure(figsize=(3.4, 3.9), dpi=GIF_DPI, layout=_layout())
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    images = []
    for frame in frames:
        axes.clear()
        axes.axis("off")
        picture.draw(axes, frame)
        images.append(drawn(canvas))
    first, *others = share_palette(images)
    durations = [FRAME_MS] * len(others) + [HOLD_MS]
    options = {"save_all": True, "append_images": others, "duration": durations, "loop": 0}
    return save(path, lambda temporary: first.save(temporary, format="GIF", **options))


def moments(frames: Sequence[Frame], most: int = SHEET) -> list[Frame]:
    """Some frames: spread evenly up to the one from which the classes stay, and the last."""
    if len(frames) <= most:
        return list(frames)
    last = len(frames) - 1
    final = frames[last][2].argmax(-1)
    settled = last
    while settled and bool((frames[settled - 1][2].argmax(-1) == final).all()):
        settled -= 1
    count = most - 1
    spread = {round(i * settled / (count - 1)) for i in range(count)}
    return [frames[i] for i in sorted(spread | {last})]


def caption(frame: Frame) -> str:
    """Step and residual in words."""
    step, residual, _ = frame
    measured = f"residual {residual:.1e}" if math.isfinite(residual) else "residual not measured"
    return f"step {step}, {measured}"


def _layout() -> ConstrainedLayoutEngine:
    """A layout with little space around and between grids, in inches."""
    return ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)


def drawn(canvas: FigureCanvasAgg) -> Image.Image:
    """Draw a figure as it is now: one frame of an animation."""
    canvas.draw()
    pixels = bytes(canvas.buffer_rgba())
    return Image.frombytes("RGBA", canvas.get_width_height(), pixels).convert("RGB")


def share_palette(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Map all images to one palette; one for each frame would flicker and make the file larger."""
    width, height = images[0].size
    strip = Image.new("RGB", (width, height * len(images)))
    for i, image in enumerate(images):
        strip.paste(image, (0, i * height))
    palette = strip.quantize(GIF_COLORS, dither=Image.Dither.NONE)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
