"""Attractor and baselines at equal parameters and equal time, in one table.

Every model gets the same search over its learning rate, with one seed, judged by the accuracy
on one half of the held-out puzzles; then more seeds with the best rate. The table reports the
other half. A finished run is never repeated, and an interrupted one goes on.
"""

import contextlib
import dataclasses
import json
import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
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
from tasks.common.train import Interrupted


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
        threads: CPU threads of a run; by default the preset's, or one if there are several jobs.
        jobs: Runs at a time, each in a process of its own; at most as many as there are cores.
        compile: Compile the blocks of every model; see `train --help`.
        out: Folder of the runs; by default one in `runs/` named by preset, time, width, threads
            and compilation: runs that differ in these are not compared.
    """

    models: tuple[ModelName, ...] = get_args(ModelName)
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    seeds: int = 3
    minutes: float | None = None
    width: int | None = None
    threads: int | None = None
    jobs: int = 1
    compile: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        if not self.models or not self.rates or self.seeds < 1:
            raise ValueError(
                "`models` and `rates` must not be empty and `seeds` must be at least 1, got "
                f"{self.models}, {self.rates} and {self.seeds}."
            )
        cores = multiprocessing.cpu_count()
        if not 1 <= self.jobs <= cores:
            raise ValueError(
                f"`jobs` must lie in 1..{cores}, the cores of this machine, got {self.jobs}. Runs "
                "that share a core do not have equal time."
            )


@dataclasses.dataclass(frozen=True)
class _Run:
    """One training run and its evaluation: what a process of its own needs to know."""

    task: GridTask[Any, Any]
    preset: str
    config: GridConfig
    folder: Path

    @property
    def place(self) -> Path:
        """The folder of this run."""
        rate, seed = self.config.learning_rate, self.config.seed
        return self.folder / f"{self.config.model}-{rate:g}-seed{seed}"

    @property
    def done(self) -> Path:
        """The file that says how it ended."""
        return self.place / "compare.json"


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
        for key in ("minutes", "width", "threads", "compile")
        if getattr(options, key) is not None
    }
    if options.jobs > 1:
        changes.setdefault("threads", 1)
    base = dataclasses.replace(base, **changes)
    label = f"{name}-{base.minutes:g}min-width{base.width}"
    if base.threads is not None:
        label += f"-{base.threads}threads"
    if base.compile:
        label += "-compiled"
    folder = options.out or RUNS / task.name / "compare" / label
    runs = [_Run(task, name, matched(base, model), folder) for model in options.models]
    task.load(base)  # made once, before several processes look for them
    _finish_all([_with(run, rate, 0) for run in runs for rate in options.rates], options.jobs)
    best = [_best_rate(run, options.rates) for run in runs]
    seeds = range(1, options.seeds)
    _finish_all(
        [_with(run, rate, seed) for run, rate in zip(runs, best, strict=True) for seed in seeds],
        options.jobs,
    )
    rows = [_row(run, rate, options) for run, rate in zip(runs, best, strict=True)]
    rows.sort(key=lambda row: -row["exact_accuracy"])
    table = {"task": task.name, "preset": name, "minutes": base.minutes, "rows": rows}
    (folder / "table.json").write_text(json.dumps(table) + "\n")
    _print(f"{task.name} {name}, {base.minutes:g} minutes each", rows, task)
    return table


def _with(run: _Run, rate: float, seed: int) -> _Run:
    config = dataclasses.replace(run.config, learning_rate=rate, seed=seed)
    return dataclasses.replace(run, config=config)


def _result(run: _Run) -> dict[str, Any]:
    return json.loads(run.done.read_text())


def _scores(run: _Run, rates: tuple[float, ...]) -> list[float]:
    """What the learning rates reached on the half of the test set that chooses among them."""
    results = [_result(_with(run, rate, 0)) for rate in rates]
    return [result["choosing"]["exact_accuracy"] for result in results]


def _best_rate(run: _Run, rates: tuple[float, ...]) -> float:
    scores = _scores(run, rates)
    return rates[scores.index(max(scores))]


def _row(run: _Run, rate: float, options: CompareOptions) -> dict[str, Any]:
    results = [_result(_with(run, rate, seed)) for seed in range(options.seeds)]
    figures = [result["reported"] for result in results]
    exact = [figure["exact_accuracy"] for figure in figures]
    row = {
        "model": run.config.model,
        "parameters": results[0]["parameters"],
        "width": run.config.width,
        "rate": rate,
        "search": dict(zip(map(str, options.rates), _scores(run, options.rates), strict=True)),
        "seeds": len(results),
        "exact_accuracy": mean(exact),
        "spread": stdev(exact) if len(exact) > 1 else None,
        "valid": mean(figure["valid"] for figure in figures),
    }
    for key in ("converged", "median_residual", "mean_steps", "exact_accuracy_4x"):
        if key in figures[0]:
            row[key] = mean(figure[key] for figure in figures)
    return row


def _finish_all(runs: list[_Run], jobs: int) -> None:
    """Do what is missing, so many at a time.

    Raises:
        Interrupted: By Ctrl-C or SIGTERM; every run that was under way left a checkpoint.
    """
    missing = [run for run in runs if not run.done.is_file()]
    if jobs == 1:
        for run in missing:
            _finish(run)
        return
    with _pool(jobs) as pool:
        futures = {pool.submit(_finish_quietly, run): run for run in missing}
        for number, future in enumerate(as_completed(futures), 1):
            future.result()
            run = futures[future]
            accuracy = _result(run)["reported"]["exact_accuracy"]
            print(f"{number} of {len(missing)}: {run.place.name} {accuracy:.1%}", flush=True)


@contextlib.contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that are waited for, whatever happens here: Ctrl-C reaches them too."""
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    except KeyboardInterrupt:
        raise Interrupted(Path()) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finish_quietly(run: _Run) -> None:
    """As `_finish`, with what it prints in a file of the run's folder."""
    run.place.mkdir(parents=True, exist_ok=True)
    with (run.place / "output.txt").open("a") as file, contextlib.redirect_stdout(file):
        _finish(run)


def _finish(run: _Run) -> None:
    """Train, or go on, and evaluate on each half of the test set."""
    task, place = run.task, run.place
    config = dataclasses.replace(run.config, out=place)
    place.mkdir(parents=True, exist_ok=True)
    path = place / NAME
    checkpoint = Checkpoint.load(path) if path.is_file() else None
    result = run_experiment(task, run.preset, config, place, checkpoint)
    _, test = task.load(config)
    model, _ = load_model(task, path, device=config.device)
    middle = len(test) // 2
    result["choosing"] = measure(task, model, test[:middle], config, quick=True)
    result["reported"] = measure(task, model, test[middle:], config)
    run.done.write_text(json.dumps(result) + "\n")


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
