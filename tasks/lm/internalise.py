"""Equilibrium internalisation: how much of the solver's work the proposal has learned to do.

In training y0 moves towards y*. So with fewer steps than it takes to converge, or with none,
the loss of a trained model is nearly that of its equilibrium, and the steps can be saved.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from implicit import spectral_radius
from models import AttractorLM
from solvers import Trace, trace
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.distributed import ALONE, Group
from tasks.lm.config import LanguageConfig
from tasks.lm.data import Corpus, measure
from tasks.output import SILENT, Progress, decimal
from tasks.runs import export

BUDGETS = (0, 1, 2, 4, 8, 16)
# The budget that is recommended costs at most this share of the converged loss.
TOLERATED = 0.001


def by_budget(
    model: AttractorLM, corpus: Corpus, config: LanguageConfig, budgets: Sequence[int],
    limit: int | None = None, group: Group = ALONE, progress: Progress = SILENT,
) -> list[dict[str, Any]]:  # fmt: skip
    """Held-out loss at each budget of solver steps; see `data.measure`."""
    rows = []
    for budget in budgets:
        figures = measure(
            model, corpus, config, limit=limit, max_steps=budget, group=group, progress=progress
        )
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
    model: AttractorLM,
    corpus: Corpus,
    config: LanguageConfig,
    limit: int | None = None,
    group: Group = ALONE,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Loss by solver budget, spectral radius of the refiner, and the recommended budget.

    Processes of a group share the held-out text; see `data.measure`.

    Returns:
        `converged` (see `data.measure`; among others the distance of the proposal),
        `by_budget`, `spectral_radius` (of the refiner at y*, mean over sequences) and `advice`.
    """
    converged = measure(model, corpus, config, limit=limit, group=group, progress=progress)
    rows = by_budget(model, corpus, config, BUDGETS, limit, group, progress)
    windows = max(min(4, len(corpus.held_out) // config.data.context), 1)
    x = corpus.held_out[: windows * config.data.context].view(windows, -1)
    with torch.no_grad():
        out = model(x.to(next(model.parameters()).device))
    assert out.proposal is not None
    proposal, value = out.proposal.detach(), out.state.detach()
    radius = spectral_radius(model.solving.module, value, proposal).radius
    return {
        "converged": converged,
        "by_budget": rows,
        "spectral_radius": decimal(radius.mean()),
        "advice": recommend(rows, converged),
    }


@torch.no_grad()
def solve_trace(model: AttractorLM, corpus: Corpus, config: LanguageConfig) -> tuple[Trace, int]:
    """How the solver moved the tokens of the first held-out window.

    Returns:
        The trace, with its states, and the number of the token that took most steps.
    """
    x = corpus.held_out[None, : config.data.context].to(next(model.parameters()).device)
    proposal = model.attractor.backbone(model.vocabulary(x))
    found = trace(
        model.solving.module, proposal, proposal, solver=model.solving.solver,
        max_steps=max(config.solve.eval_max_steps, 1), batch_dims=2, keep_states=True,
    )  # fmt: skip
    return found, int(found.solution.num_steps.argmax())


def draw(
    found: dict[str, Any], path: Path, model: AttractorLM, corpus: Corpus, config: LanguageConfig,
    folder: Path,
) -> None:  # fmt: skip
    """Draw what `study` found, how the run went, and the solve of a token.

    Args:
        found: See `study`.
        path: The checkpoint of the run.
        model: Of it.
        corpus: Its text.
        config: Its options.
        folder: Receives budgets.png, training.png and trajectory.png.
    """
    from implicit.diagnostics.plots import plot_trajectory
    from tasks.lm.pictures import SUBPLOTS, plot_budgets
    from tasks.reports.plots import plot_learning, title_of_run

    folder.mkdir(parents=True, exist_ok=True)
    plot_budgets(found["by_budget"], folder / "budgets.png")
    history, picture = Checkpoint.load(path).value("history"), folder / "training.png"
    title = title_of_run("lm", config.train.seed, history[-1]["step"], corpus.validated)
    plot_learning(history, picture, SUBPLOTS, rtol=config.solve.rtol, title=title)
    moves, token = solve_trace(model, corpus, config)
    plot_trajectory(moves, folder / "trajectory.png", token)


def export_with_budget(checkpoint: Path, budget: int, path: Path) -> None:
    """Write the averaged weights with another solver budget; 0 leaves the refiner unused."""
    export(checkpoint, path)
    whole = Checkpoint.load(path)
    config = LanguageConfig.from_json(whole.meta["config"]).changed(eval_max_steps=budget)
    Checkpoint(whole.tensors, whole.meta | {"config": config.to_json()}).save(path)
