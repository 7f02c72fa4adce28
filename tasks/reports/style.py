"""What all pictures share: colours, resolution, and files that are written atomically."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.folders import draft

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
DPI = 150


def save(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file in the folder of `path`, then rename it to `path`.

    A failure leaves an old file at `path` as it was, and no temporary file.

    Raises:
        OSError: The file cannot be written; of the class that the system raised.
    """
    try:
        with draft(path) as temporary:
            write(temporary)
    except OSError as error:
        # The system's message would name the temporary file, which nobody asked for.
        raise type(error)(
            f"{path} cannot be written ({error.strerror or error}). Make sure that its folder "
            "exists, is writable and has room, or name another."
        ) from error
    return path


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches. matplotlib is loaded at the first one: it takes half a second."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_png(figure: "Figure", path: Path) -> Path:
    """Write a figure, atomically; return `path`."""
    return save(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI))
