"""Pictures of traced solves: how residuals fall, and the path that the iterates take.

Kept out of `implicit`'s namespace, so that importing the library does not import matplotlib.
"""

import math
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from implicit.diagnostics.style import COLORS, DPI, house_style
from solvers.packing import StatePacking
from solvers.solution import Result
from solvers.tools.trace import Trace

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Pictures of solves need the package `matplotlib`, which is not installed: install the "
        "extra with `pip install 'attractor-models[tasks]'`.",
        name=error.name,
    ) from error

MARKERS = ["o", "s", "^", "v", "D"]
MAX_MARKERS = 20
RESIDUAL = "rms of f(y) \N{MINUS SIGN} y"


def plot_convergence(traces: Mapping[str, Trace], path: Path | str) -> Path:
    """Write `convergence_figure` as a PNG.

    Args:
        traces: Name of each solver -> its trace.
        path: The PNG, in a folder that exists.

    Returns:
        `path`.

    Raises:
        ValueError: There is no trace, or one without an evaluation.
        OSError: The file cannot be written.
    """
    return _save(convergence_figure(traces), path)


@house_style()
def convergence_figure(traces: Mapping[str, Trace]) -> Figure:
    """Worst (solid) and median (dashed) residual of each solver's batch.

    The left panel counts calls of `f`, those for derivatives included; the right one has the
    wall time that `trace` measured. A sample that is not finite counts as infinitely bad, and
    what is infinite is left out; the legend says how many samples did not converge.

    Raises:
        ValueError: There is no trace, or one without an evaluation.
    """
    if not traces:
        raise ValueError("`traces` is empty. Pass at least one, as {'picard': trace(...)}.")
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    markers = [marker for marker in MARKERS for _ in COLORS]
    styles = zip(cycle(COLORS), cycle(markers), strict=False)
    for (name, trace), (color, marker) in zip(traces.items(), styles, strict=False):
        worst, median = _summary(name, trace)
        evaluation = trace.num_evals.numpy()
        milliseconds = 1000 * trace.seconds.numpy()
        label = name + _failures(trace)
        for axes, x in ((left, evaluation), (right, milliseconds)):
            look = {"color": color, "marker": marker, "markersize": 3, "linewidth": 1.3}
            look["markevery"] = -(-len(x) // MAX_MARKERS)
            axes.plot(x, worst, label=label, **look)
            axes.plot(x, median, "--", label=f"_{name}, median", alpha=0.7, **look)
    left.set(xlabel="evaluations of f", ylabel=RESIDUAL)
    right.set(xlabel="wall time (ms)", xlim=(0, None))
    for axes in (left, right):
        _log_scale(axes)
    lines, labels = left.get_legend_handles_labels()
    lines += [Line2D([], [], color="0.3"), Line2D([], [], color="0.3", linestyle="--")]
    labels += ["worst sample", "median sample"]
    figure.legend(lines, labels, loc="outside lower center", ncols=4)
    return figure


def plot_trajectory(trace: Trace, path: Path | str, sample: int = 0) -> Path:
    """Write `trajectory_figure` as a PNG.

    Args:
        trace: Made with `keep_states=True`.
        path: The PNG, in a folder that exists.
        sample: Which sample; in row-major order if there are several batch dims.

    Returns:
        `path`.

    Raises:
        ValueError: The trace has no states, or none of this sample is finite.
        IndexError: There is no such sample.
        OSError: The file cannot be written.
    """
    return _save(trajectory_figure(trace, sample), path)


@house_style()
def trajectory_figure(trace: Trace, sample: int = 0) -> Figure:
    """The evaluated points of one sample in the plane of their two principal components.

    The labels say which share of the path's variance each axis shows; the axes' scales differ.
    Points that are not finite are left out, and so are those after the last move.

    Raises:
        ValueError: The trace has no states, or none of this sample is finite.
        IndexError: There is no such sample.
    """
    points, shares = _principal(_path(trace, sample))
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(points[:, 0], points[:, 1], color="0.7", linewidth=1, zorder=1)
    count = np.arange(1, len(points) + 1)
    dots = axes.scatter(points[:, 0], points[:, 1], c=count, cmap="viridis", s=16, zorder=2)
    for index, marker, label, color in ((0, "s", "start", COLORS[1]), (-1, "*", "end", COLORS[3])):
        axes.plot(
            *points[index], marker, color=color, markersize=12, markeredgecolor="white",
            label=label, zorder=3, linestyle="none",
        )  # fmt: skip
    axes.set(
        xlabel=f"component 1 ({100 * shares[0]:.1f} % of variance)",
        ylabel=f"component 2 ({100 * shares[1]:.1f} % of variance)",
        title=_verdict(trace, sample),
    )
    axes.legend()
    figure.colorbar(dots, ax=axes, label="evaluation", pad=0.02)
    return figure


def _summary(name: str, trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Worst and median residual of each evaluation; NaN where infinite."""
    rows = trace.residual.flatten(1) if trace.residual.ndim > 1 else trace.residual[:, None]
    if not rows.numel():
        raise ValueError(f"The trace of {name!r} holds no evaluation. Trace a batch with samples.")
    values = np.nan_to_num(rows.double().cpu().numpy(), nan=math.inf)
    worst, median = values.max(1), np.median(values, 1)
    return tuple(np.where(np.isfinite(part), part, math.nan) for part in (worst, median))  # type: ignore[return-value]


def _failures(trace: Trace) -> str:
    converged = trace.solution.converged
    failed = int((~converged).sum())
    return f" ({failed} of {converged.numel()} unconverged)" if failed else ""


def _path(trace: Trace, sample: int) -> Tensor:
    """Finite points of one sample, a row each, up to its last move."""
    if not trace.states:
        raise ValueError("This trace holds no states. Make it with `keep_states=True`.")
    packing = StatePacking(trace.states[0], trace.residual.ndim - 1)
    if not -packing.num_samples <= sample < packing.num_samples:
        raise IndexError(f"`sample` is {sample}, but the trace has {packing.num_samples} samples.")
    points = torch.stack([packing.pack(state)[sample] for state in trace.states])
    points = points.cpu().double()
    points = points[points.isfinite().all(1)]
    if not len(points):
        raise ValueError(f"Sample {sample} has no finite point to draw.")
    moves = (points[1:] != points[:-1]).any(1).nonzero().flatten()
    return points[: int(moves[-1]) + 2] if len(moves) else points[:1]


def _principal(points: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates on the two principal axes, and the shares of variance they explain."""
    centred = points - points.mean(0)
    _, values, axes = torch.linalg.svd(centred, full_matrices=False)
    coordinates = torch.zeros(len(points), 2, dtype=points.dtype)
    shares = torch.zeros(2, dtype=points.dtype)
    found = min(2, len(values))
    coordinates[:, :found] = centred @ axes[:found].T
    shares[:found] = values[:found].square() / values.square().sum().clamp(min=1e-300)
    return coordinates.numpy(), shares.numpy()


def _verdict(trace: Trace, sample: int) -> str:
    solution = trace.solution
    result = Result(int(solution.result.flatten()[sample])).name.replace("_", " ")
    return f"sample {sample}: {result} after {int(solution.num_steps.flatten()[sample])} steps"


def _save(figure: Figure, path: Path | str) -> Path:
    figure.savefig(path, format="png", dpi=DPI)
    return Path(path)


def _log_scale(axes: Axes) -> None:
    """A logarithmic y axis; a linear one if no value is above 0, as in an exact solve."""
    values = [float(y) for line in axes.get_lines() for y in np.asarray(line.get_ydata())]
    if any(y > 0 for y in values):
        axes.set_yscale("log")
