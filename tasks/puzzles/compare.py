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

from tasks.checkpoints.manager import NAME, load_newest
from tasks.experiments.jobs import Job, SearchOptions, search_and_repeat
from tasks.puzzles.config import PUBLISHED_STEPS, GridConfig, ModelName
from tasks.puzzles.experiment import train
from tasks.puzzles.loading import load_model
from tasks.puzzles.report import measure
from tasks.puzzles.task import GridTask
from tasks.runs import RUNS


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions(SearchOptions):
    """Compare models of equal size, trained for equal time.

    Attributes:
        models: Which.
        test_puzzles: Held-out puzzles, half of them to choose with; by default the preset's.
        width: Width of the attractor, whose parameter count the others match; by default the
            preset's.
        compile: Compile the blocks of every model; see `train --help`.
    """

    models: tuple[ModelName, ...] = get_args(ModelName)
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    test_puzzles: int | None = None
    width: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.models:
            raise ValueError("`models` must not be empty: name those to compare.")


@dataclasses.dataclass(frozen=True)
class _Run(Job):
    """One training run and its evaluation."""

    task: GridTask[Any, Any]
    preset: str
    config: GridConfig
    folder: Path

    @property
    def place(self) -> Path:
        """The folder of this run."""
        rate, seed = self.config.learning_rate, self.config.seed
        return self.folder / f"{self.config.model}-{rate:g}-seed{seed}"

    def finish(self) -> None:
        """Train, or go on, and evaluate on each half of the test set."""
        task, place = self.task, self.place
        config = dataclasses.replace(self.config, out=place)
        place.mkdir(parents=True, exist_ok=True)
        path = place / NAME
        checkpoint = load_newest(path) if path.is_file() else None
        _, test, result = train(task, self.preset, config, place, checkpoint, validation_puzzles=0)
        model, _ = load_model(task, path, device=config.device)
        middle = len(test) // 2
        result["choosing"] = measure(task, model, test[:middle], config, quick=True)
        result["reported"] = measure(task, model, test[middle:], config, quick=True)
        if "converged" in result["reported"]:
            longer = dataclasses.replace(config, eval_steps=4 * config.eval_steps)
            again = measure(task, model, test[middle:], longer, quick=True)
            result["reported"]["exact_accuracy_4x"] = again["exact_accuracy"]
        result["config"] = config.to_json()
        self.done.write_text(json.dumps(result) + "\n")

    def score(self) -> float:
        """See `Job`: here, exact accuracy on one half of the test set."""
        return self.result()["choosing"]["exact_accuracy"]

    def summary(self) -> str:
        """See `Job`: here, exact accuracy on the other half of the test set."""
        return f"{self.result()['reported']['exact_accuracy']:.1%}"


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
    """Finish all runs that are not done, then print the table and write it to the folder.

    Args:
        task: The puzzles.
        name: The preset's.
        base: Its configuration.
        options: What to compare.

    Returns:
        The rows of the table, best first, as JSON values.
    """
    names = ("minutes", "test_puzzles", "width", "threads", "compile")
    base = options.applied(base, names)
    label = f"{name}-{base.minutes:g}min-width{base.width}-{base.test_puzzles}puzzles"
    if base.threads is not None:
        label += f"-{base.threads}threads"
    if base.compile:
        label += "-compiled"
    folder = options.out or RUNS / task.name / "compare" / label
    runs = [_Run(task, name, matched(base, model), folder) for model in options.models]
    task.enlarged(task.load(base)[0], base)  # once, before several processes look for them
    best = search_and_repeat(runs, options)
    rows = [_row(run, rate, options) for run, rate in zip(runs, best, strict=True)]
    rows.sort(key=lambda row: -row["exact_accuracy"])
    table = {"task": task.name, "preset": name, "minutes": base.minutes, "rows": rows}
    (folder / "table.json").write_text(json.dumps(table) + "\n")
    _print(f"{task.name} {name}, {base.minutes:g} minutes each", rows, task)
    return table


def _row(run: _Run, rate: float, options: CompareOptions) -> dict[str, Any]:
    results = [run.repeated(rate, seed).result() for seed in range(options.seeds)]
    figures = [result["reported"] for result in results]
    exact = [figure["exact_accuracy"] for figure in figures]
    row = {
        "model": run.config.model,
        "parameters": results[0]["parameters"],
        "width": run.config.width,
        "rate": rate,
        "search": {str(rate): run.repeated(rate, 0).score() for rate in options.rates},
        "seeds": len(results),
        "train_steps": [result["train_steps"] for result in results],
        "exact_accuracy": mean(exact),
        "spread": stdev(exact) if len(exact) > 1 else None,
        "valid": mean(figure["valid"] for figure in figures),
    }
    for key in ("converged", "median_residual", "mean_steps", "exact_accuracy_4x"):
        if key in figures[0]:
            row[key] = mean(figure[key] for figure in figures)
    return row


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
