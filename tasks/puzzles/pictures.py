"""One puzzle on its way to the fixed point: a sheet of moments, and the same as a moving picture.

What a moment looks like is for the task to say: it brings a function that draws one frame.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from torch import Tensor

from tasks.reports.style import DPI, save

# Step, relative residual (NaN if not measured), and probabilities of shape (cells, classes).
Frame = tuple[int, float, Tensor]
# Draws a frame, with its title, into axes that are empty and have no frame of their own.
Draw = Callable[[Axes, Frame], None]

RED, RED_TINT = "#C1121F", "#FBE3E4"  # what is wrong
SHEET, COLUMNS = 8, 4
GIF_DPI, GIF_COLORS, FRAME_MS, HOLD_MS = 90, 64, 200, 3000


def check(
    frames: Sequence[Frame],
    shape: tuple[int, int],
    place: str,
    **grids: Sequence[int],
) -> None:
    """Check that frames can be drawn.

    Args:
        frames: The moments of a solve; at least one.
        shape: Cells and classes, the shape of every frame's probabilities.
        place: For the message: "on a 9x9 board".
        grids: By their names, what must have one entry a cell.

    Raises:
        ValueError: No frames, or a grid or a tensor of another size.
    """
    if not frames:
        raise ValueError("`frames` must hold at least one frame, got none.")
    for name, grid in grids.items():
        if len(grid) != shape[0]:
            raise ValueError(f"`{name}` must have {shape[0]} cells {place}, got {len(grid)}.")
    for step, _, probabilities in frames:
        if tuple(probabilities.shape) != shape:
            raise ValueError(
                f"The probabilities of step {step} must have shape {shape}, one row a cell: got "
                f"{tuple(probabilities.shape)}."
            )


def draw_sheet(
    frames: Sequence[Frame], draw: Draw, path: Path, legend: Sequence[str], title: str = ""
) -> Path:
    """Draw up to eight moments of a solve into one PNG; see `moments`.

    Args:
        frames: In order; at least one.
        draw: Draws one of them.
        path: The PNG, in a folder that exists.
        legend: What colours mean, below the sheet; two lines of it below a single moment.
        title: Above the sheet.

    Returns:
        `path`.

    Raises:
        OSError: The file cannot be written.
    """
    chosen = moments(frames)
    columns = min(COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    # One grid alone would be narrower than the legend.
    width, height = max(2.6 * columns, 3.6), 3.05 * rows + 0.3 + 0.35 * bool(title)
    figure = Figure(figsize=(width, height), layout=_layout())
    grids = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grids:
        axes.axis("off")
    for axes, frame in zip(grids, chosen, strict=False):
        draw(axes, frame)
    middle = len(legend) // 2
    halves = [_in_line(legend[:middle]), _in_line(legend[middle:])]
    text = _in_line(halves) if columns > 1 else "\n".join(halves)
    figure.supxlabel(text, fontsize=8.5, color="0.35")
    if title:
        figure.suptitle(title, fontsize=12)
    return save(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI))


def animate(frames: Sequence[Frame], draw: Draw, path: Path) -> Path:
    """Draw every moment of a solve into an endless GIF that pauses on its last frame.

    Args and errors are those of `draw_sheet`.
    """
    figure = Figure(figsize=(3.4, 3.9), dpi=GIF_DPI, layout=_layout())
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    images = []
    for frame in frames:
        axes.clear()
        axes.axis("off")
        draw(axes, frame)
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


def moments(frames: Sequence[Frame]) -> list[Frame]:
    """Up to eight frames: spread evenly up to the one from which the classes stay, and the last."""
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


def caption(frame: Frame) -> str:
    """Step and residual in words."""
    step, residual, _ = frame
    measured = f"residual {residual:.1e}" if math.isfinite(residual) else "residual not measured"
    return f"step {step}, {measured}"


def _layout() -> ConstrainedLayoutEngine:
    """A layout with little space around and between grids, in inches."""
    return ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)


def _in_line(parts: Sequence[str]) -> str:
    """Join the parts of a legend into one line."""
    return "     ".join(parts)


def _share_palette(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Map all images to one palette; one for each frame would flicker and make the file larger."""
    width, height = images[0].size
    strip = Image.new("RGB", (width, height * len(images)))
    for i, image in enumerate(images):
        strip.paste(image, (0, i * height))
    palette = strip.quantize(GIF_COLORS, dither=Image.Dither.NONE)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
