"""Attractor and baselines at equal parameters and equal time, in one table.

Every model gets the same search over its learning rate, with one seed, judged by the accuracy
on one half of the held-out puzzles; then more seeds with the best rate. The table reports the
other half. A finished run is never repeated, and an interrupted one goes on.
"""

import dataclasses
import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table

from tasks.common.checkpoint import Checkpoint
from tasks.common.experiment import run_experiment
from tasks.common.grid_config import PUBLISHED_STEPS, GridConfig, ModelName
from tasks.common.grid_task import GridTask
from tasks.common.measure import measure
from tasks.common.runs import NAME, RUNS, load_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compare models of equal size, trained for equal time.

    Attributes:
        models: Which.
        rates: Learning rates to choose from.
        seeds: Runs per model with the chosen rate, the one of the search included.
        minutes: Training time of a run; by default the preset's.
        width: Width of the attractor, whose parameter count the others match; by default the
            preset's.
        threads: CPU threads; by default the preset's.
        out: Folder of the runs; by default one in `runs/` named by preset, time and width.
    """

    models: tuple[ModelName, ...] = get_args(ModelName)
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    seeds: int = 3
    minutes: float | None = None
    width: int | None = None
    threads: int | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        if not self.models or not self.rates or self.seeds < 1:
            raise ValueError(
                "`models` and `rates` must not be empty and `seeds` must be at least 1, got "
                f"{self.models}, {self.rates} and {self.seeds}."
            )


def matched(config: GridConfig, model: ModelName) -> GridConfig:
    """The configuration of another model, of the width that comes closest in parameters.

    The two-latent models have no backbone, and put its blocks into their network; HRM splits
    its blocks between two networks.
    """
    blocks = config.backbone_blocks + config.refiner_blocks
    changes: dict[str, Any] = {"model": model}
    if model in ("reasoner", *PUBLISHED_STEPS):
        changes["refiner_blocks"] = -(-blocks // 2) if model == "hrm" else blocks
    other = dataclasses.replace(config, **changes)
    wanted = _parameters(dataclasses.replace(config, model="attractor"))
    step = 2 * config.num_heads if config.layout in ("attention", "cells") else 1
    # Parameters grow as the square of the width, nearly.
    near = round(config.width * math.sqrt(wanted / _parameters(other)) / step)
    widths = [step * n for n in range(max(1, near - 2), near + 3)]
    sized = [dataclasses.replace(other, width=width) for width in widths]
    return min(sized, key=lambda candidate: abs(_parameters(candidate) - wanted))


def _parameters(config: GridConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


def compare(
    task: GridTask[Any, Any], name: str, base: GridConfig, options: CompareOptions
) -> dict[str, Any]:
    """Do what is missing of all runs, then print the table and write it to the folder.

    Args:
        task: The puzzles.
        name: The preset's.
        base: Its configuration.
        options: What to compare.

    Returns:
        The rows of the table, best first, as JSON values.
    """
    changes = {
        key: getattr(options, key)
        for key in ("minutes", "width", "threads")
        if getattr(options, key) is not None
    }
    base = dataclasses.replace(base, **changes)
    label = f"{name}-{base.minutes:g}min-width{base.width}"
    folder = options.out or RUNS / task.name / "compare" / label
    rows = [_row(task, name, matched(base, model), options, folder) for model in options.models]
    rows.sort(key=lambda row: -row["exact_accuracy"])
    table = {"task": task.name, "preset": name, "minutes": base.minutes, "rows": rows}
    (folder / "table.json").write_text(json.dumps(table) + "\n")
    _print(f"{task.name} {name}, {base.minutes:g} minutes each", rows, task)
    return table


def _row(
    task: GridTask[Any, Any], name: str, config: GridConfig, options: CompareOptions, folder: Path
) -> dict[str, Any]:
    search = [_run(task, name, config, rate, 0, folder) for rate in options.rates]
    scores = [run["choosing"]["exact_accuracy"] for run in search]
    best = scores.index(max(scores))
    runs = [search[best]]
    for seed in range(1, options.seeds):
        runs.append(_run(task, name, config, options.rates[best], seed, folder))
    figures = [run["reported"] for run in runs]
    exact = [figure["exact_accuracy"] for figure in figures]
    row = {
        "model": config.model,
        "parameters": search[best]["parameters"],
        "width": config.width,
        "rate": options.rates[best],
        "search": dict(zip(map(str, options.rates), scores, strict=True)),
        "seeds": len(runs),
        "exact_accuracy": mean(exact),
        "spread": stdev(exact) if len(exact) > 1 else None,
        "valid": mean(figure["valid"] for figure in figures),
    }
    for key in ("converged", "median_residual", "mean_steps", "exact_accuracy_4x"):
        if key in figures[0]:
            row[key] = mean(figure[key] for figure in figures)
    return row


def _run(
    task: GridTask[Any, Any], name: str, config: GridConfig, rate: float, seed: int, folder: Path
) -> dict[str, Any]:
    """One training run, done before or now, and its figures on each half of the test set."""
    place = folder / f"{config.model}-{rate:g}-seed{seed}"
    config = dataclasses.replace(config, learning_rate=rate, seed=seed, out=place)
    done = place / "compare.json"
    if done.is_file():
        return json.loads(done.read_text())
    place.mkdir(parents=True, exist_ok=True)
    path = place / NAME
    checkpoint = Checkpoint.load(path) if path.is_file() else None
    result = run_experiment(task, name, config, place, checkpoint)
    _, test = task.load(config)
    model, _ = load_model(task, path, device=config.device)
    middle = len(test) // 2
    result["choosing"] = measure(task, model, test[:middle], config, quick=True)
    result["reported"] = measure(task, model, test[middle:], config)
    done.write_text(json.dumps(result) + "\n")
    return result


def _print(title: str, rows: list[dict[str, Any]], task: GridTask[Any, Any]) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("model", "parameters", "rate", "exact", "4 x steps", "converged", "residual"):
        table.add_column(column)
    for row in rows:
        spread = f" +- {row['spread']:.1%}" if row["spread"] is not None else ""
        cells = [row["model"], f"{row['parameters']:,}", f"{row['rate']:g}"]
        cells.append(f"{row['exact_accuracy']:.1%}{spread}")
        for key, form in (
            ("exact_accuracy_4x", ".1%"),
            ("converged", ".1%"),
            ("median_residual", ".1e"),
        ):
            cells.append(format(row[key], form) if key in row else "-")
        table.add_row(*cells)
    Console().print(table)
