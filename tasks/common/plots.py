"""Pictures of training and of solver steps; knows no task. Every file is written atomically."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def plot_learning(history: Sequence[dict[str, float]], path: Path) -> Path:
    """Loss, accuracies and residual against minutes; rows may lack keys."""
    figure = Figure(figsize=(7, 7), layout="constrained")
    loss, accuracy, residual = figure.subplots(3, 1, sharex=True)
    _line(loss, history, "loss", "training loss", BLUE)
    loss.set(yscale="log", ylabel="loss (nats per cell)")
    _line(accuracy, history, "cell_accuracy", "cells, training batch", BLUE, 100)
    _line(accuracy, history, "exact_accuracy", "exact, training batch", ORANGE, 100)
    _line(accuracy, history, "test_exact", "exact, held-out", GREEN, 100, marker="o")
    accuracy.set(ylabel="accuracy (%)", ylim=(0, 102))
    accuracy.legend(frameon=False)
    _line(residual, history, "residual", "median", BLUE)
    residual.set(yscale="log", ylabel="residual after the\nfree steps", xlabel="minutes")
    return save(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def plot_steps(
    steps: Sequence[int],
    exact: Sequence[float],
    residual: Sequence[float],
    path: Path,
    title: str,
) -> Path:
    """Exact accuracy (share, drawn in %) and median relative residual against solver steps."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    left.plot(steps, [100 * share for share in exact], "o-", color=BLUE)
    left.set_xscale("log", base=2)
    left.set_xticks(list(steps), [str(step) for step in steps])
    left.set(xlabel="solver steps", ylim=(0, 102), title=title)
    left.set_ylabel("exact accuracy (%)", color=BLUE)
    right = left.twinx()
    right.plot(steps, residual, "s--", color=ORANGE)
    right.set_yscale("log")
    right.set_ylabel("median relative residual", color=ORANGE)
    return save(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def save(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then move it there in one step."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)
    return path


def _line(
    axes: "object",
    history: Sequence[dict[str, float]],
    key: str,
    label: str,
    color: str,
    scale: float = 1.0,
    marker: str = "",
) -> None:
    rows = [row for row in history if key in row]
    minutes = [row["minutes"] for row in rows]
    values = [scale * row[key] for row in rows]
    axes.plot(minutes, values, color=color, label=label, marker=marker)  # type: ignore[attr-defined]
