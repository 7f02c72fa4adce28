"""How plots look and are written, and curves of training and of solver steps; no task is known."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from implicit.diagnostics.style import BLUE, COLORS, DPI, ORANGE, house_style
from tasks.folders import draft
from tasks.output import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From the least to the largest value that is drawn, at least; below, noise would fill the picture.
LEAST_RANGE = 0.2
# A curve of training is smoothed over so large a part of its rows, if it has so many.
SMOOTHED_PART, SMOOTHED_FROM = 1 / 25, 75


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
        curves: Key of a row of the log to the curve's name; keys test_* are marked, held out. A
            curve without rows is left out, and so is a subplot without curves.
        percent: The values are shares in [0, 1], drawn in %.
        log: On a logarithmic axis, where a value is above 0.
        relative: The values are relative residuals, to be compared with the tolerance.
    """

    label: str
    curves: Mapping[str, str]
    percent: bool = False
    log: bool = False
    relative: bool = False


# For any task whose validations solve.
HELD_OUT_RESIDUAL = Subplot(
    "relative residual,\nheld-out",
    {"test_residual": "median", "test_residual_90": "90th percentile"},
    log=True,
    relative=True,
)


def title_of_run(name: str, seed: int, steps: int, validated: str) -> str:
    """What stands above a picture of training.

    Args:
        name: Which run it is.
        seed: Of the run.
        steps: Of the optimizer.
        validated: On how much held-out data the validations are.
    """
    return f"{name}, seed {seed}: {steps:,} training steps, validated on {validated}"


@house_style()
def plot_learning(
    history: Sequence[dict[str, float]],
    path: Path,
    subplots: Sequence[Subplot],
    segments: int = 1,
    rtol: float | None = None,
    title: str = "",
) -> Path:
    """Metrics of training against time, in subplots one below the other.

    A long curve is drawn as its running mean, geometric on a logarithmic axis, with the rows
    themselves faint behind it. Metrics of a row depend on the segments in which its samples are, so
    that the mean is one over whole rounds of these.

    Args:
        history: Rows with `minutes` and any of the subplots' keys. A curve connects the
            rows that have its key with a finite value.
        path: The PNG, in a folder that exists.
        subplots: What to draw.
        segments: Segments of a sample in training.
        rtol: Where a solve has converged, drawn as a line.
        title: Above the picture: which run it is.

    Returns:
        `path`.

    Raises:
        OSError: The file cannot be written.
    """
    shown = [subplot for subplot in subplots if any(_rows(history, key) for key in subplot.curves)]
    shown = shown or [*subplots[:1]]
    figure = new_figure(7, 2.5 * len(shown))
    every: Any = figure.subplots(len(shown), 1, sharex=True, squeeze=False)
    # A run of seconds has no use for minutes with three decimals.
    seconds = max((row["minutes"] for row in history), default=1.0) < 2
    for axes, subplot in zip(every[:, 0], shown, strict=True):
        for (key, name), color in zip(subplot.curves.items(), COLORS, strict=False):
            if rows := _rows(history, key):
                times = [row["minutes"] * (60 if seconds else 1) for row in rows]
                values = [row[key] * (100 if subplot.percent else 1) for row in rows]
                marked = key.startswith("test_")
                _draw_curve(
                    axes, times, values, 0 if marked else segments, subplot.log, color, name
                )
        axes.set_ylabel(subplot.label)
        if subplot.percent:
            axes.set_ylim(-3, 103)
        if subplot.log:
            _log_scale(axes)
        elif not subplot.percent:
            _widen(axes)
        if not axes.lines:
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color="0.5")
            axes.set_yticks([], minor=False)
            axes.set_yticks([], minor=True)
            continue
        axes.legend()
        if subplot.relative and rtol:
            draw_tolerance(axes, rtol)
    every[0, 0].set_title(title)
    every[-1, 0].set_xlabel(f"training time ({'seconds' if seconds else 'minutes'})")
    figure.align_ylabels()
    return save_png(figure, path)


def _rows(history: Sequence[dict[str, float]], key: str) -> list[dict[str, float]]:
    """The rows that have a finite value."""
    return [row for row in history if math.isfinite(row.get(key, math.nan))]


def _draw_curve(
    axes: "Axes",
    times: Sequence[float],
    values: Sequence[float],
    segments: int,
    log: bool,
    color: str,
    name: str,
) -> None:
    """Draw one curve of training; `segments` is 0 for one of validations, which is never smooth."""
    marker = "" if segments and len(values) > 1 else "o"  # one point makes no line
    if segments and len(values) >= SMOOTHED_FROM:
        axes.plot(times, values, color=color, alpha=0.2, linewidth=0.5)
        width = segments * math.ceil(SMOOTHED_PART * len(values) / segments)
        values, times = running_mean(values, width, geometric=log), running_mean(times, width)
    axes.plot(times, values, color=color, label=name, marker=marker)


def running_mean(values: Sequence[float], width: int, geometric: bool = False) -> list[float]:
    """The means of all `width` values in a row, or the mean of all values if they are fewer.

    A geometric mean is that of values above 0; with any other value the mean is arithmetic.
    """
    if geometric and min(values) > 0:
        return [math.exp(mean) for mean in running_mean([math.log(v) for v in values], width)]
    width = min(width, len(values))
    return np.convolve(values, np.full(width, 1 / width), mode="valid").tolist()


def _widen(axes: "Axes") -> None:
    """Give a linear axis a least range, in proportion to its values."""
    low, high = axes.get_ylim()
    missing = LEAST_RANGE * max(abs(low), abs(high)) - (high - low)
    if axes.lines and missing > 0:
        axes.set_ylim(low - missing / 2, high + missing / 2)


@house_style()
def plot_steps(
    steps: Sequence[int],
    exact: Sequence[float],
    residual: Sequence[float],
    path: Path,
    title: str,
    puzzles: int,
    rtol: float | None = None,
) -> Path:
    """Exact accuracy, and below it the residual, against the number of solver steps.

    Args:
        steps: Solver steps, on an axis of powers of two; 0 is drawn one unit left of 1.
        exact: Share of samples that are right throughout, in [0, 1]; drawn in %.
        residual: Median of rms(f(y) - y) / rms(y); NaN leaves a gap.
        path: The PNG, in a folder that exists.
        title: Above the picture, which adds the number of puzzles.
        puzzles: How many they are, for the intervals.
        rtol: Where a solve has converged, drawn as a line.

    Returns:
        `path`.

    Raises:
        OSError: The file cannot be written.
    """
    figure = new_figure(7, 5.2)
    above, below = figure.subplots(2, 1, sharex=True)
    _shares(above, steps, exact, [puzzles] * len(steps), "o-")
    above.set(ylim=(-3, 103), ylabel="exact accuracy (%)")
    above.set_title(f"{title}; {puzzles:,} of them, lines: 95 %")
    draw_residuals(below, steps, residual, rtol)
    figure.align_ylabels()
    return save_png(figure, path)


def draw_residuals(
    axes: "Axes", steps: Sequence[int], residual: Sequence[float], rtol: float | None
) -> None:
    """The lower panel of a picture by solver steps; see `plot_steps`."""
    axes.plot(steps, residual, "o-", color=ORANGE)
    _log_scale(axes)
    if rtol is not None:
        draw_tolerance(axes, rtol)
    axes.set(xlabel="solver steps at most", ylabel="median relative residual")
    if 0 in steps:
        axes.set_xscale("symlog", base=2, linthresh=1)
    else:
        axes.set_xscale("log", base=2)
    axes.set_xticks(list(steps), [str(step) for step in steps])
    axes.set_xticks([], minor=True)


@house_style()
def plot_breadth(rows: Sequence[Mapping[str, float]], path: Path, puzzles: int) -> Path:
    """Exact accuracy against the number of starts, for each way to choose among their answers.

    Ways that choose answers of the same accuracy at every number share a curve.

    Args:
        rows: `breadth`, and a share for each way to choose.
        path: The PNG, in a folder that exists.
        puzzles: How many they are.

    Returns:
        `path`.

    Raises:
        OSError: The file cannot be written.
    """
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    curves: dict[tuple[float, ...], list[str]] = {}
    for name in (name for name in rows[0] if name != "breadth"):
        curves.setdefault(tuple(row[name] for row in rows), []).append(name)
    breadths, lowest = [row["breadth"] for row in rows], 1.0
    for number, (shares, names) in enumerate(curves.items()):
        # Beside each other, not on each other.
        beside = [breadth * 1.02**number for breadth in breadths]
        low = _shares(axes, beside, shares, [puzzles] * len(rows), "o-", f"C{number}")
        axes.lines[-1].set_label(f"by {' = '.join(names)}")
        lowest = min(lowest, *low)
    axes.set_xscale("log", base=2)
    axes.set_xticks(breadths, [f"{breadth:g}" for breadth in breadths])
    axes.set_xticks([], minor=True)
    # From the next ten below: the differences are what the picture is for.
    axes.set(xlabel="starts per puzzle", ylabel="exact accuracy (%)")
    axes.set_ylim(max(10 * (100 * lowest // 10), 0), 101)
    axes.set_title(f"An answer chosen among several starts; {puzzles:,} puzzles, lines: 95 %")
    axes.legend(loc="lower right")
    return save_png(figure, path)


@house_style()
def plot_calibration(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> Path:
    """Exact accuracy by the residual at the end, a bar for each decade with its number of puzzles.

    Args:
        rows: `residual`, a range in words, `puzzles` and `exact_accuracy`.
        path: The PNG, in a folder that exists.
        title: Above the picture.

    Returns:
        `path`.

    Raises:
        OSError: The file cannot be written.
    """
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    places, counts = list(range(len(rows))), [row["puzzles"] for row in rows]
    shares = [row["exact_accuracy"] for row in rows]
    axes.bar(places, [100 * share for share in shares], color=BLUE, alpha=0.35, width=0.7)
    _shares(axes, places, shares, counts, "o")
    for place, count in zip(places, counts, strict=True):
        axes.annotate(f"n = {count:,}", (place, 104), ha="center", fontsize=9, color="0.3")
    axes.set_xticks(places, [row["residual"].replace(" to ", "\nto ") for row in rows])
    axes.grid(False, axis="x")
    axes.set(xlabel="relative residual at the end", ylabel="exact accuracy (%)", ylim=(0, 112))
    axes.set_yticks(range(0, 101, 20))
    axes.set_title(f"{title}; lines: 95 %")
    return save_png(figure, path)


def _shares(
    axes: "Axes",
    x: Sequence[float],
    shares: Sequence[float],
    counts: Sequence[int],
    form: str,
    color: str = BLUE,
) -> list[float]:
    """Draw shares in percent with their intervals, whose lower ends are returned as shares."""
    ends = [wilson(share, count) for share, count in zip(shares, counts, strict=True)]
    apart = [
        [100 * max(share - low, 0.0) for share, (low, _) in zip(shares, ends, strict=True)],
        [100 * max(high - share, 0.0) for share, (_, high) in zip(shares, ends, strict=True)],
    ]
    axes.errorbar(x, [100 * share for share in shares], yerr=apart, fmt="none", ecolor=color)
    axes.plot(x, [100 * share for share in shares], form, color=color)
    return [low for low, _ in ends]


def draw_tolerance(axes: "Axes", rtol: float) -> None:
    """Draw the residual at which a solve has converged as a line."""
    axes.axhline(rtol, color="0.3", linestyle="--", linewidth=1)
    axes.annotate(
        f"tolerance {rtol:.0e}", (0.01, rtol), xycoords=("axes fraction", "data"),
        xytext=(0, 3), textcoords="offset points", fontsize=9, color="0.3",
    )  # fmt: skip


def _log_scale(axes: "Axes") -> None:
    """Make the y axis logarithmic, unless no value is above 0, as after an exact solve."""
    values = [float(y) for line in axes.get_lines() for y in np.asarray(line.get_ydata())]
    if any(y > 0 for y in values):
        axes.set_yscale("log")
