"""How all pictures of the project look: `house.mplstyle` beside this file.

It stands here since whatever draws may import this package: the library, the tasks, benchmarks and
examples.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Those of the cycle of the style: of Okabe and Ito, for readers who are colour-blind as well.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
BLUE, ORANGE, GREEN = COLORS[:3]
DPI = 150


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw as the project does inside the context, or in the function that it decorates.

    matplotlib is loaded at the first use, and its settings are as before afterwards.
    """
    from matplotlib import style

    with style.context("implicit.diagnostics.house"):
        yield


def panels(count: int, width: float = 9.0, height: float = 3.4) -> tuple[Any, Any]:
    """A figure, and its axes beside each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(1, count)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as the PNG `path` and as an SVG beside it; make the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
