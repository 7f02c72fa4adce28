"""Pictures of language models: training, and the loss by the budget of solver steps."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from implicit.diagnostics.style import BLUE, COLORS, house_style
from tasks.reports.plots import HELD_OUT_RESIDUAL, Subplot, draw_residuals, new_figure, save_png

# Of the picture of training. Both losses are in one unit, so that over-fitting can be seen.
SUBPLOTS = (
    Subplot("loss (nats per token)", {"loss": "training batch", "test_loss": "held-out"}),
    Subplot("solver steps", {"solver_steps": "training batch", "test_steps": "held-out"}),
    Subplot(
        "distance of the proposal\n|y0 \N{MINUS SIGN} y*| / |y*|", {"test_distance": "held-out"}
    ),
    HELD_OUT_RESIDUAL,
)
# Below so many percent, the axis of the extra loss is linear: rounding is not worth a decade.
NEGLIGIBLE = 0.01


@house_style()
def plot_budgets(rows: Sequence[dict[str, Any]], path: Path, rtol: float | None = None) -> Path:
    """The loss that a budget of solver steps costs, and below it the residual.

    Args:
        rows: `max_steps`, `loss` and, where the solver is used, `median_residual`, by rising
            budget: the last is taken to be converged.
        path: The PNG, in a folder that exists.
        rtol: Where a solve has converged, drawn as a line.

    Returns:
        `path`.

    Raises:
        OSError: The file cannot be written.
    """
    figure = new_figure(7, 5.2)
    above, below = figure.subplots(2, 1, sharex=True)
    steps, converged = [row["max_steps"] for row in rows], rows[-1]["loss"]
    above.set_yscale("symlog", linthresh=NEGLIGIBLE)
    above.margins(y=0.1)
    above.plot(steps, [100 * (row["loss"] / converged - 1) for row in rows], "o-", color=BLUE)
    above.axhline(0, color="0.3", linewidth=1)
    above.yaxis.set_major_formatter(lambda value, _: f"{value:+g} %" if value else "0 %")
    above.set_ylabel("extra held-out loss")
    above.set_title(f"Loss by solver steps, over the converged one of {converged:.3f} nats a token")
    # Without the solver there is no residual, but a step all the same.
    residuals = [row.get("median_residual", math.nan) for row in rows]
    draw_residuals(below, steps, residuals, rtol)
    figure.align_ylabels()
    return save_png(figure, path)


@house_style()
def plot_loops(models: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """The loss of each model by its number of loops, over the loss with its own number.

    Args:
        models: The figures of `tasks.lm.loops.by_loops` by the models' files, and `model`.
        path: The PNG, in a folder that exists.

    Returns:
        `path`.

    Raises:
        OSError: The file cannot be written.
    """
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    axes.set_xscale("symlog", linthresh=1, base=2)
    axes.set_yscale("symlog", linthresh=NEGLIGIBLE)
    for color, found in zip(itertools.cycle(COLORS), models.values(), strict=False):
        loops = [row["max_steps"] for row in found["rows"]]
        extra = [100 * (row["loss"] / found["own_loss"] - 1) for row in found["rows"]]
        axes.plot(loops, extra, "o-", color=color, label=found["model"])
        axes.axvline(found["own"], color=color, linestyle=":", linewidth=1)
    axes.axhline(0, color="0.3", linewidth=1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g} %" if value else "0 %")
    axes.set_xlabel("loops, or solver updates (dotted: the model's own number)")
    axes.set_ylabel("extra held-out loss")
    axes.legend()
    return save_png(figure, path)
