"""Pictures of a language model: its training, and what its solver steps bring."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.reports.curves import Subplot
from tasks.reports.style import BLUE, ORANGE, new_figure, save_png

SUBPLOTS = (
    Subplot("loss (nats per token)", {"loss": "training batch"}),
    Subplot("bits per byte", {"test_bits": "held-out"}),
    Subplot("solver steps", {"solver_steps": "training batch", "test_steps": "held-out"}),
    Subplot(
        "distance of the proposal\n|y0 \N{MINUS SIGN} y*| / |y*|", {"test_distance": "held-out"}
    ),
)


def plot_budgets(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Loss, and on a second axis the residual, against the budget of solver steps."""
    figure = new_figure(6, 4)
    left = figure.subplots()
    steps = [row["max_steps"] for row in rows]
    left.plot(steps, [row["loss"] for row in rows], "o-", color=BLUE)
    left.set(xlabel="solver steps at most", ylabel="held-out loss (nats per token)")
    left.set_xscale("symlog", base=2, linthresh=1)
    left.set_xticks(steps, map(str, steps))
    left.yaxis.label.set_color(BLUE)
    right = left.twinx()
    measured = [(row["max_steps"], row["median_residual"]) for row in rows if row["max_steps"]]
    right.plot(*zip(*measured, strict=True), "s--", color=ORANGE)
    right.set_yscale("log")
    right.set_ylabel("median relative residual", color=ORANGE)
    return save_png(figure, path)
