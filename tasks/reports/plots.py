"""How plots look and are written, and curves of training and of solver steps; no task is known."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.folders import draft

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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


@dataclasses.dataclass(frozen=True)
class Subplot:
    """One subplot of `plot_learning`.

    Attributes:
        label: Of its vertical axis.
        curves: Key of a row of the log to the curve's name; keys test_* are marked, held out.
        percent: The values are shares in [0, 1], drawn in %.
        log: On a logarithmic axis, where a value is above 0.
    """

    label: str
    curves: Mapping[str, str]
    percent: bool = False
    log: bool = False


def plot_learning(
    history: Sequence[dict[str, float]], path: Path, subplots: Sequence[Subplot]
) -> Path:
    """Metrics of training against minutes, in subplots one below the other.

    Args:
        history: Rows with `minutes` and any of the subplots' keys. A curve connects the
            rows that have its key; a subplot without any rows says so.
        path: The PNG, in a folder that exists.
        subplots: What to draw.

    Returns:
        `path`.

    Raises:
        OSError: The file cannot be written.
    """
    figure = new_figure(7, 2.5 * len(subplots))
    every: Any = figure.subplots(len(subplots), 1, sharex=True, squeeze=False)
    for axes, subplot in zip(every[:, 0], subplots, strict=True):
        for (key, name), color in zip(subplot.curves.items(), (BLUE, ORANGE, GREEN), strict=False):
            rows = [row for row in history if key in row]
            if not rows:
                continue
            # One point makes no line: it needs a marker to be seen.
            marker = "o" if key.startswith("test_") or len(rows) == 1 else ""
            values = [row[key] * (100 if subplot.percent else 1) for row in rows]
            minutes, style = [row["minutes"] for row in rows], {"linewidth": 1.3, "markersize": 5}
            axes.plot(minutes, values, color=color, label=name, marker=marker, **style)
        axes.set_ylabel(subplot.label)
        if subplot.percent:
            axes.set_ylim(-3, 103)
        if subplot.log:
            _log_scale(axes)
        _tidy(axes)
        axes.spines["right"].set_visible(False)
        if not axes.lines:
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color="0.5")
            axes.set_yticks([], minor=False)
            axes.set_yticks([], minor=True)
        elif len(subplot.curves) > 1:
            axes.legend(frameon=False, fontsize=9)
    every[-1, 0].set_xlabel("training time (minutes)")
    figure.align_ylabels()
    return save_png(figure, path)


def plot_steps(
    steps: Sequence[int], exact: Sequence[float], residual: Sequence[float], path: Path, title: str
) -> Path:
    """Exact accuracy, and on a second axis the residual, against the number of solver steps.

    Args:
        steps: Solver steps, on an axis of powers of two; 0 is drawn one unit left of 1.
        exact: Share of samples that are right throughout, in [0, 1]; drawn in %.
        residual: Median of rms(f(y) - y) / rms(y); NaN leaves a gap.
        path: The PNG, in a folder that exists.
        title: Above the picture.

    Returns:
        `path`.

    Raises:
        OSError: The file cannot be written.
    """
    figure = new_figure(7, 4.2)
    left = figure.subplots()
    right = left.twinx()
    left.plot(steps, [100 * share for share in exact], "o-", color=BLUE)
    right.plot(steps, residual, "s--", color=ORANGE, markersize=5)
    if 0 in steps:
        left.set_xscale("symlog", base=2, linthresh=1)
    else:
        left.set_xscale("log", base=2)
    left.set_xticks(list(steps), [str(step) for step in steps])
    left.set_xticks([], minor=True)
    left.set(xlabel="solver steps", ylim=(-3, 103), title=title)
    left.set_ylabel("exact accuracy (%)  \N{BLACK CIRCLE}", color=BLUE)
    left.tick_params(axis="y", labelcolor=BLUE)
    _log_scale(right)
    right.set_ylabel("median relative residual  \N{BLACK SQUARE}", color=ORANGE)
    right.tick_params(axis="y", which="both", labelcolor=ORANGE)
    _tidy(left)
    right.spines["top"].set_visible(False)
    return save_png(figure, path)


def plot_curves(
    x: Sequence[float], shares: Mapping[str, Sequence[float]], path: Path, label: str, title: str
) -> Path:
    """Curves of accuracy against a quantity on a logarithmic axis.

    Args:
        x: Positions, above 0; drawn on a logarithmic axis.
        shares: Name of a curve to its shares in [0, 1]; drawn in %.
        path: The PNG, in a folder that exists.
        label: Below the axis.
        title: Above the picture.

    Returns:
        `path`.

    Raises:
        OSError: The file cannot be written.
    """
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    colors = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "black")
    for (name, values), color in zip(shares.items(), colors, strict=False):
        axes.plot(x, [100 * share for share in values], "o-", color=color, label=name)
    doubles = min(x, default=1) >= 1
    axes.set_xscale("log", base=2 if doubles else 10)
    if doubles:
        axes.set_xticks(list(x), [f"{position:g}" for position in x])
        axes.set_xticks([], minor=True)
    axes.set(xlabel=label, ylabel="exact accuracy (%)", ylim=(-3, 103), title=title)
    axes.legend(frameon=False, fontsize=9)
    _tidy(axes)
    return save_png(figure, path)


def _log_scale(axes: "Axes") -> None:
    """Make the y axis logarithmic, unless no value is above 0, as after an exact solve."""
    values = [float(y) for line in axes.get_lines() for y in np.asarray(line.get_ydata())]
    if any(y > 0 for y in values):
        axes.set_yscale("log")


def _tidy(axes: "Axes") -> None:
    axes.grid(color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines["top"].set_visible(False)
