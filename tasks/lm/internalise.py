"""Equilibrium internalisation: how much of the solver's work the proposal has learned to do.

In training y0 moves towards y*. So with fewer steps than it takes to converge, or with none,
the loss of a trained model is nearly that of its equilibrium, and the steps can be saved.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from implicit import spectral_radius
from models import AttractorLM
from tasks.common.plots import BLUE, ORANGE, save_png
from tasks.lm.config import LanguageConfig
from tasks.lm.data import Corpus, measure

BUDGETS = (0, 1, 2, 4, 8, 16)
# The budget that is recommended costs at most this share of the converged loss.
TOLERATED = 0.001


def by_budget(
    model: AttractorLM, corpus: Corpus, config: LanguageConfig, budgets: Sequence[int],
    limit: int | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Held-out loss with so many solver steps at most; see `data.measure`."""
    rows = []
    for budget in budgets:
        figures = measure(model, corpus, config, limit=limit, max_steps=budget)
        rows.append({"max_steps": budget, **figures})
    return rows


def recommend(rows: Sequence[dict[str, Any]], converged: dict[str, Any]) -> dict[str, Any]:
    """The smallest budget whose loss is within TOLERATED of the converged one.

    Returns:
        `max_steps`, `extra_loss` (a share of the converged loss) and `saved` (the share of
        the refiner's steps that it saves).
    """
    for row in sorted(rows, key=lambda row: row["max_steps"]):
        extra = row["loss"] / converged["loss"] - 1
        if extra <= TOLERATED:
            saved = 1 - min(row["max_steps"] / max(converged["mean_steps"], 1e-9), 1)
            return {"max_steps": row["max_steps"], "extra_loss": extra, "saved": saved}
    needed = math.ceil(converged["mean_steps"])
    return {"max_steps": needed, "extra_loss": 0.0, "saved": 0.0}


def study(
    model: AttractorLM, corpus: Corpus, config: LanguageConfig, limit: int | None = None
) -> dict[str, Any]:
    """Loss by budget, distance of the proposal, spectral radius, and what to make of them.

    Returns:
        `converged` (see `data.measure`), `by_budget`, `distance` (mean of |y0 - y*| / |y*| over
        tokens), `spectral_radius` (of the refiner at y*, mean over sequences) and `advice`.
    """
    converged = measure(model, corpus, config, limit=limit)
    rows = by_budget(model, corpus, config, BUDGETS, limit)
    device = next(model.parameters()).device
    x = corpus.held_out[: 4 * config.context].view(4, -1).to(device)
    with torch.no_grad():
        out = model.attractor(model.vocabulary(x))
    proposal, value = out.proposal.detach(), out.value.detach()
    distance = (proposal - value).norm(dim=-1) / value.norm(dim=-1)
    radius = spectral_radius(model.solving.module, value, proposal).radius
    return {
        "converged": converged,
        "by_budget": rows,
        "distance": distance.mean().item(),
        "spectral_radius": radius.mean().item(),
        "advice": recommend(rows, converged),
    }


def plot_budgets(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Loss, and on a second axis the residual, against the budget of solver steps."""
    figure = Figure(figsize=(6, 4), layout="constrained")
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
