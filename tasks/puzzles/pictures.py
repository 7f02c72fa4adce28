"""One puzzle on its way to the fixed point: a sheet of moments, and a moving picture of all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from implicit.diagnostics.style import BLUE, house_style
from tasks.puzzles.glyphs import Glyph, draw_glyphs
from tasks.reports.plots import draw_tolerance, save, save_png

# Step, relative residual (NaN if not measured), and probabilities of shape (cells, classes).
Frame = tuple[int, float, Tensor]

RED, RED_TINT = "#C1121F", "#FBE3E4"  # what is wrong
GIVEN_TINT = "#EFEFEF"
LARGE = 0.62  # font size of one symbol in a cell, whose side is 1
SHEET = 5
# Frames of an animation after the first one, at most.
SHOWN = 48
# Frames that a palette is made of.
SAMPLED = 8
GIF_DPI, GIF_COLORS, FRAME_MS, HOLD_MS = 100, 128, 140, 3000


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
        clue, sure, right = self._kinds(frame)
        for cells, tint in ((clue, GIVEN_TINT), (sure & ~right, RED_TINT)):
            corners = [divmod(cell, self.side)[::-1] for cell in cells.nonzero()[:, 0].tolist()]
            squares = [Rectangle(corner, 1, 1) for corner in corners]
            axes.add_collection(PatchCollection(squares, facecolor=tint, linewidth=0))
        draw_glyphs(axes, self.glyphs(frame))
        self._draw_lines(axes)
        num_right, num_blanks = int((right & ~clue).sum()), int((~clue).sum())
        axes.set_title(
            f"{caption(frame)}\n{num_right} of {num_blanks} blanks right", fontsize=9, y=1.0
        )
        axes.set(xlim=(-0.1, self.side + 0.1), ylim=(self.side + 0.1, -0.1), aspect="equal")

    def legend(self, frames: Sequence[Frame]) -> list[Patch]:
        """Swatches of what occurs in some frames."""
        clue, sure, right = map(torch.stack, zip(*map(self._kinds, frames), strict=True))
        kinds = (
            ("clue", GIVEN_TINT, "black", clue),
            ("right", "white", BLUE, sure & right),
            ("wrong", RED_TINT, RED, sure & ~right),
        )
        return [
            Patch(facecolor=face, edgecolor=edge, label=label)
            for label, face, edge, cells in kinds
            if bool(cells.any())
        ]

    def glyphs(self, frame: Frame) -> list[Glyph]:
        """The characters of a frame, cell by cell; a clue is bold."""
        probabilities, found = frame[2].detach().cpu(), []
        for cell, asked in enumerate(self.question):
            y, x = (place + 0.5 for place in divmod(cell, self.side))
            if asked:
                found.append(Glyph(self.characters[asked], x, y, LARGE, "black", bold=True))
            else:
                found += self.blank(probabilities[cell], x, y, self.answer[cell])
        return found

    def blank(self, probabilities: Tensor, x: float, y: float, answer: int) -> list[Glyph]:
        """The characters of a blank: here, the likeliest symbol: the surer, the larger and darker.

        Args:
            probabilities: Shape (classes,).
            x: Of the cell's centre.
            y: Of the cell's centre.
            answer: The right symbol.
        """
        likely, choice = probabilities.max(-1)
        # From a guess among all symbols to certainty.
        count, symbol = len(probabilities), int(choice) + self.first_symbol
        sure = min(max((likely.item() * count - 1) / (count - 1), 0.0), 1.0)
        size, color = LARGE * (2 + sure) / 3, BLUE if symbol == answer else RED
        return [Glyph(self.characters[symbol], x, y, size, color, 0.4 + 0.6 * sure)]

    def is_sure(self, probabilities: Tensor) -> Tensor:
        """Of which blanks one symbol is drawn, and is right or wrong: here, of all.

        Args:
            probabilities: Shape (..., classes).

        Returns:
            Truth values of shape (...).
        """
        return torch.ones(probabilities.shape[:-1], dtype=torch.bool)

    def _kinds(self, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """Which cells are clues, which of the others are sure, and which are right."""
        probabilities = frame[2].detach().cpu()
        clue = torch.tensor(self.question) > 0
        right = probabilities.argmax(-1) + self.first_symbol == torch.tensor(self.answer)
        return clue, self.is_sure(probabilities) & ~clue, right

    def _draw_lines(self, axes: Axes) -> None:
        rows, columns = self.box or (self.side, self.side)
        ends, widths = [], []
        for i in range(self.side + 1):
            ends += [((i, 0), (i, self.side)), ((0, i), (self.side, i))]
            widths += [2.0 if i % count == 0 else 0.4 for count in (columns, rows)]
        lines = LineCollection(ends, colors="black", linewidths=widths, capstyle="projecting")
        axes.add_collection(lines)


@house_style()
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
    _draw_legend(figure, picture, chosen, 5 if len(chosen) > 1 else 2)
    return save_png(figure, path)


@house_style()
def animate(
    frames: Sequence[Frame], picture: GridPicture, path: Path, rtol: float | None = None
) -> Path:
    """Draw a solve into an endless GIF that pauses on its last frame: the grid and the residual.

    Of a long solve it shows `SHOWN` + 1 moments, evenly spread. Those of 81 cells take 0.25 MB and
    three seconds: what all of them share is drawn once.

    Args:
        frames: As of `draw_sheet`.
        picture: Draws the grid.
        path: The GIF, in a folder that exists.
        rtol: The relative residual at which a solve has converged, drawn as a line.

    Returns:
        `path`.

    Raises:
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=(8.0, 4.7), dpi=GIF_DPI, layout=_layout())
    canvas = FigureCanvasAgg(figure)
    board, curve = figure.subplots(1, 2, width_ratios=(1.15, 1))
    last = len(frames) - 1
    shown = [frames[i] for i in sorted({round(i * last / SHOWN) for i in range(SHOWN + 1)})]
    _draw_legend(figure, picture, shown, 5)
    moving = _draw_curve(curve, frames, rtol)
    board.axis("off")
    _draw_alone(board, picture, shown[0])
    canvas.draw()
    figure.set_layout_engine("none")  # all frames have the layout of the first
    board.set_visible(False)
    canvas.draw()
    board.set_visible(True)
    ground, images = canvas.copy_from_bbox(figure.bbox), []
    for frame in shown:
        canvas.restore_region(ground)
        _draw_alone(board, picture, frame)
        figure.draw_artist(board)
        before = [other for other in frames if other[0] <= frame[0]]
        for line, points in zip(moving, (before, before[-1:]), strict=True):
            line.set_data(*_measured(points))
            curve.draw_artist(line)
        images.append(image_of(canvas))
    first, *others = share_palette(images)
    durations = [FRAME_MS] * len(others) + [HOLD_MS]
    options = {"save_all": True, "append_images": others, "duration": durations, "loop": 0}
    return save(path, lambda temporary: first.save(temporary, format="GIF", **options))


def _draw_alone(axes: Axes, picture: GridPicture, frame: Frame) -> None:
    """Draw a moment into axes that may show another one."""
    # `axes.clear` would take longer than all that is drawn.
    for artist in (*axes.collections, *axes.images, *axes.patches, *axes.texts):
        artist.remove()
    picture.draw(axes, frame)


def _draw_curve(axes: Axes, frames: Sequence[Frame], rtol: float | None) -> tuple[Line2D, Line2D]:
    """Draw the residuals of a solve; return lines to draw: up to a moment, and the mark at it."""
    steps, residuals = _measured(frames)
    axes.plot(steps, residuals, color="0.8")
    moving: dict[str, Any] = {"animated": True, "in_layout": False}
    (passed,) = axes.plot([], [], color=BLUE, **moving)
    (mark,) = axes.plot([], [], "o", color=BLUE, markersize=7, clip_on=False, **moving)
    sizes = [size for size in (*residuals, rtol or math.nan) if size > 0]
    if sizes:
        axes.set(yscale="log", ylim=(min(sizes) / 2.5, max(sizes) * 2.5))
    if rtol:
        draw_tolerance(axes, rtol)
    axes.set(xlim=(0, max(frames[-1][0], 1)), xlabel="solver step", title="relative residual")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return passed, mark


def _measured(frames: Sequence[Frame]) -> tuple[list[int], list[float]]:
    """Steps, and residuals that a logarithmic axis has room for; NaN in place of others."""
    return [step for step, _, _ in frames], [
        residual if 0 < residual < math.inf else math.nan for _, residual, _ in frames
    ]


def moments(frames: Sequence[Frame], most: int = SHEET) -> list[Frame]:
    """Some frames: spread evenly up to the one from which the classes stay, and the last.

    Where they change up to the end, all are spread evenly up to the last.
    """
    if len(frames) <= most:
        return list(frames)
    last = len(frames) - 1
    final = frames[last][2].argmax(-1)
    settled = last
    while settled and bool((frames[settled - 1][2].argmax(-1) == final).all()):
        settled -= 1
    count = most - (settled < last)
    spread = {round(i * settled / (count - 1)) for i in range(count)}
    return [frames[i] for i in sorted(spread | {last})]


def caption(frame: Frame) -> str:
    """Step and residual in words."""
    step, residual, _ = frame
    measured = f"residual {residual:.1e}" if math.isfinite(residual) else "residual not measured"
    return f"step {step}, {measured}"


def _draw_legend(
    figure: Figure, picture: GridPicture, frames: Sequence[Frame], columns: int
) -> None:
    """Say below a figure what its colours mean."""
    # An empty swatch stands before what no colour shows.
    handles = [*picture.legend(frames), Patch(alpha=0, label=picture.unsure)]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5,
        handlelength=1.0, handleheight=1.0, labelcolor="0.25",
    )  # fmt: skip


def _layout() -> ConstrainedLayoutEngine:
    """A layout with little space around and between grids, in inches."""
    return ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)


def image_of(canvas: FigureCanvasAgg) -> Image.Image:
    """What a canvas shows: one frame of an animation."""
    pixels = bytes(canvas.buffer_rgba())
    return Image.frombytes("RGBA", canvas.get_width_height(), pixels).convert("RGB")


def share_palette(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Map all images to one palette; one for each frame would flicker and make the file larger.

    Its colours are those of a few of them, for colours of thousands of pixels come back.
    """
    chosen = images[:: math.ceil(len(images) / SAMPLED)]
    width, height = images[0].size
    strip = Image.new("RGB", (width, height * len(chosen)))
    for i, image in enumerate(chosen):
        strip.paste(image, (0, i * height))
    palette = strip.quantize(GIF_COLORS, dither=Image.Dither.NONE)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
