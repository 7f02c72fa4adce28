"""Results for people and for programs: JSON, a Markdown table, and plots."""

import json
import math
import os
import platform
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from implicit.diagnostics.style import COLORS, house_style

Row = dict[str, Any]
# Heading of a column, and how to print a row in it.
Columns = dict[str, Callable[[Row], str]]

RESULTS = Path(__file__).resolve().parents[1] / "results"
# The colour and the marker of each library.
LIBRARIES = dict(
    zip(
        ("ours", "torchdeq", "scipy", "jaxopt", "optimistix"), zip(COLORS, "os^Dv", strict=False),
        strict=True,
    )
)  # fmt: skip


def folder(name: str) -> Path:
    """The folder of one benchmark's results; BENCH_RESULTS names another parent, for trials."""
    path = Path(os.environ.get("BENCH_RESULTS", RESULTS / "bench")) / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def rounds(default: int) -> int:
    """How often to measure; BENCH_ROUNDS sets another number, for trials."""
    return setting_or("BENCH_ROUNDS", default)


def setting_or(variable: str, default: int) -> int:
    """A number from the environment."""
    return int(os.environ.get(variable, default))


def save(name: str, section: str, rows: list[Row], **about: Any) -> dict[str, Any]:
    """Put one section into a benchmark's results beside the others, and return them all."""
    path = folder(name) / "result.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    content[section] = {**about, **setting(), "rows": rows}
    content = dict(sorted(content.items()))
    path.write_text(json.dumps(content, indent=1) + "\n")
    return content


def setting() -> Row:
    """What a timing depends on beside the code."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def write_markdown(
    name: str, title: str, content: dict[str, Any], columns: Columns, notes: Sequence[str] = ()
) -> None:
    """One table per section."""
    parts = [f"# {title}", *notes]
    for key, section in content.items():
        stamp = f"torch {section['torch']}, {section['threads']} thread(s), {section['machine']}"
        parts += [f"## {section.get('title', key)}", stamp, table(section["rows"], columns)]
    (folder(name) / "table.md").write_text("\n\n".join(parts) + "\n")


def table(rows: list[Row], columns: Columns) -> str:
    """A Markdown table: text to the left, numbers to the right."""
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    lines += ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]
    return "\n".join(lines)


def number(key: str, form: str) -> Callable[[Row], str]:
    """Print a number, or a dash where there is none."""
    return lambda row: "-" if row.get(key) is None else format(row[key], form)


@house_style()
def dots(name: str, content: dict[str, Any]) -> None:
    """Time over that of our `anderson`: a panel per section, and a line per solver across all.

    The solver with the lowest median over the sections is on top; see `_by_median`.
    """
    panels = [part for part in content.values() if part["rows"]]
    solvers = _by_median(panels)
    height = {solver: -place for place, solver in enumerate(solvers)}
    # Large letters, since a page shows the picture at half its width.
    size = (2.9 + 2.3 * len(panels), 0.27 * len(solvers) + 2.9)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, part in zip(axes.flat, panels, strict=True):
        _draw_ratios(axis, part["rows"], height)
        axis.set_title(_heading(part["title"], [panel["title"] for panel in panels]), fontsize=12)
    axes[0, 0].set_yticks(list(height.values()), list(height))
    axes[0, 0].set_ylim(-len(solvers) + 0.4, 0.6)
    across = "time / that of our anderson"
    across += "\nsolvers are sorted by its median, in which no convergence counts as infinite"
    axes[0, len(panels) // 2].set_xlabel(across, fontsize=13)
    _legend_of_libraries(figure, {row["library"] for part in panels for row in part["rows"]})
    figure.savefig(folder(name) / "picture.png")
    plt.close(figure)


def _ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Time of each solver over that of our `anderson`; infinite where it gave no answer."""
    unit = next(row["wall_ms"] for row in rows if row["solver"] == "anderson")
    times = {row["solver"]: row["wall_ms"] for row in rows}
    return {name: math.inf if ms is None else ms / unit for name, ms in times.items()}


def _by_median(panels: Sequence[dict[str, Any]]) -> list[str]:
    """All solvers, by the median of their ratios; one that did not converge takes forever."""
    found: dict[str, list[float]] = {}
    for part in panels:
        ratios = _ratios(part["rows"])
        for row in part["rows"]:
            ratio = ratios[row["solver"]] if row["converged"] else math.inf
            found.setdefault(row["solver"], []).append(ratio)
    return sorted(found, key=lambda solver: statistics.median(found[solver]))


def _draw_ratios(axis: Any, rows: Sequence[Row], height: dict[str, int]) -> None:
    """A mark and a number for each solver, or a cross at the right end."""
    ratios = _ratios(rows)
    axis.axvline(1.0, color="0.5", linewidth=1, zorder=1)
    for row in rows:
        colour, marker = LIBRARIES[row["library"]]
        ratio, at = ratios[row["solver"]], height[row["solver"]]
        if math.isinf(ratio):
            right = axis.get_yaxis_transform()
            axis.plot(0.96, at, "x", color=colour, transform=right, markersize=6)
            continue
        inside = colour if row["converged"] else "white"
        axis.plot(ratio, at, marker, markerfacecolor=inside, markeredgecolor=colour)
        decimals = 0 if ratio >= 100 else 1 if ratio >= 10 else 2
        axis.annotate(
            f"{ratio:.{decimals}f}", (ratio, at), xytext=(6, 0), textcoords="offset points",
            va="center_baseline", color=colour, fontsize=12,
            bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "linewidth": 0},
        )  # fmt: skip
    known = [ratio for ratio in ratios.values() if ratio < math.inf]
    low, high = min(known), max(known)
    # Room for the number beside the last mark.
    axis.set(xscale="log", xlim=(low / 1.3, high * (high / low) ** 0.4))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(labelsize=13)


def _legend_of_libraries(figure: Any, met: set[str]) -> None:
    """Below a picture: what the colours, the shapes and hollow marks mean."""
    shapes = [(library, *look, look[0]) for library, look in LIBRARIES.items() if library in met]
    shapes += [
        ("hollow: did not converge", "0.3", "o", "white"),
        ("no answer in time", "0.3", "x", ""),
    ]
    handles = [
        Line2D([], [], linestyle="", color=colour, marker=marker, markerfacecolor=inside or colour,
               label=label)
        for label, colour, marker, inside in shapes
    ]  # fmt: skip
    columns = math.ceil(len(handles) / 2)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=13)


def _heading(title: str, titles: Sequence[str]) -> str:
    """Break the title of a section to the width of a panel, below a letter that no other has.

    A title is as "(b) 64 x 256, tanh, float32, tolerance 1e-06".
    """
    problem, dtype, tolerance = title.rsplit(", ", 2)
    letter, problem = problem.split(" ", 1)
    if sum(other.startswith(f"{letter} ") for other in titles) > 1:
        letter = f"{letter[:-1]}, {dtype})"
    else:
        problem += f", {dtype}"
    # Lines break between phrases rather than within them.
    phrases = problem.replace(" x ", "\u00a0\u00d7\u00a0"), tolerance.replace(" ", "\u00a0")
    return "\n".join([letter, *textwrap.wrap(", ".join(phrases), 20, break_on_hyphens=False)])


@house_style()
def curves(
    name: str,
    panels: dict[str, dict[str, tuple[list[float], list[float]]]],
    across: str,
    title: str,
) -> None:
    """Log-log lines: a panel per quantity, a line per label, which is named at its end.

    Lines that lie on each other share a name; a thin grey line shows what grows in proportion.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5.6 * len(panels), 4.6), squeeze=False)
    for axis, (quantity, series) in zip(axes[0], panels.items(), strict=True):
        ends = {}
        for number, (label, (across_values, up_values)) in enumerate(series.items()):
            look = {"color": f"C{number % 7}", "linestyle": "-" if number < 7 else "--"}
            axis.loglog(across_values, up_values, marker="o", markersize=3, **look)
            ends[label] = (up_values[-1], look["color"])
        (right,) = {values[-1] for values, _ in series.values()}
        _name_ends(axis, ends, right)
        values = next(iter(series.values()))[0][-3:]
        lowest = min(up[-1] for _, up in series.values())
        guide = [lowest / 3 * value / right for value in values]
        axis.loglog(values, guide, color="0.6", linewidth=1, linestyle=":")
        axis.annotate(
            "in proportion", (values[1], guide[1]), xytext=(6, -8), textcoords="offset points",
            color="0.5", fontsize=8, va="top",
        )  # fmt: skip
        axis.set(xlabel=across, ylabel=quantity)
    figure.suptitle(title, fontsize=10.5)
    figure.savefig(folder(name) / "picture.png")
    plt.close(figure)


def _name_ends(axis: Any, ends: dict[str, tuple[float, str]], right: float) -> None:
    """Write the name of each line behind its end, one below the other where ends are close."""
    low, high = np.log(axis.get_ylim())
    # So much of the height is a line of text.
    step, places = 0.045 * (high - low), list[float]()
    ordered = sorted(ends.items(), key=lambda end: -end[1][0])
    for _, (value, _) in ordered:
        places.append(min(np.log(value), places[-1] - step if places else math.inf))
    # As far above the ends as below them.
    shift = float(np.mean([np.log(ends[label][0]) for label, _ in ordered]) - np.mean(places))
    for (label, (value, color)), place in zip(ordered, places, strict=True):
        axis.annotate(
            label, (right, value), xytext=(right * 1.6, math.exp(place + shift)),
            textcoords="data", color=color, fontsize=8, va="center", annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": color, "linewidth": 0.5, "relpos": (0, 0.5),
                "shrinkA": 1, "shrinkB": 2,
            },
        )  # fmt: skip
