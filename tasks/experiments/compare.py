"""Models at equal parameters, and at equal time or equal steps, in one table.

Every model gets the same search over its learning rate, with one seed, judged on one half of the
held-out data; then more seeds with the best rate. The table reports the other half. A finished run
is never repeated, and an interrupted one goes on.
"""

import contextlib
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tasks.distributed import Group
from tasks.experiments.folder import lock_folder
from tasks.experiments.jobs import Run, SearchOptions, search_and_repeat
from tasks.training.options import Config

# The columns that every table has.
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "model": lambda row: row["model"],
    "parameters": lambda row: f"{row['parameters']:,}",
    "rate": lambda row: f"{row['rate']:g}",
}


def matched(config: Any, **changes: Any) -> Any:
    """The configuration of another model, of the width that comes closest in parameters.

    Args:
        config: Its model "attractor" has the wanted number of parameters.
        **changes: The other model's options; those that it has no use for are left out.
    """
    other = config.adapted(**changes)
    wanted = num_parameters(config.adapted(model="attractor"))
    step = 1 if "num_heads" in config.unused() else 2 * config.model.num_heads
    sizes: dict[int, int] = {}

    def size(count: int) -> int:
        if count not in sizes:
            sizes[count] = num_parameters(other.changed(width=step * count))
        return sizes[count]

    low, high = 1, 1  # parameters grow with the width: bisect where they pass what is wanted
    while size(high) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < wanted else (low, middle)
    best = min((low, high), key=lambda count: abs(size(count) - wanted))
    return other.changed(width=step * best)


def num_parameters(config: Config) -> int:
    """Parameters of the model, without making it."""
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


def compare(
    title: str, head: dict[str, Any], runs: Sequence[Run], options: SearchOptions
) -> dict[str, Any]:
    """Finish all runs that are not done, then print the table and write it to their folder.

    Args:
        title: Of the printed table.
        head: What the written one says besides its rows.
        runs: What to compare, at least one.
        options: Rates and seeds.

    Returns:
        The table as JSON values, its rows best first; empty in all processes of `torchrun` but the
        first.
    """
    experiment, folder = runs[0].experiment, runs[0].folder
    group, code = Group.current(), commit()  # now, since files may change while it runs
    with lock_folder(folder) if group.first else contextlib.nullcontext():
        best = search_and_repeat(runs, options)
    if not group.first:
        return {}
    rows = [_row(run, rate, options) for run, rate in zip(runs, best, strict=True)]
    rows.sort(key=lambda row: -experiment.sign * row[experiment.metric])
    found = {
        "task": experiment.task,
        "preset": runs[0].preset,
        **head,
        "rates": list(options.rates),
        "commit": code,
        "rows": rows,
    }
    (folder / "table.json").write_text(json.dumps(found) + "\n")
    table = Table(title=title, title_justify="left", pad_edge=False)
    for column in experiment.columns:
        table.add_column(column, overflow="fold", min_width=11 if column == "model" else None)
    for row in rows:
        table.add_row(*(cell(row) for cell in experiment.columns.values()))
    Console().print(table)
    return found


def _row(run: Run, rate: float, options: SearchOptions) -> dict[str, Any]:
    results = [run.repeated(rate, seed).result() for seed in range(options.seeds)]
    values = [result["reported"][run.experiment.metric] for result in results]
    return {
        "model": run.label,
        "parameters": results[0]["parameters"],
        "width": run.config.model.width,
        "rate": rate,
        "search": {str(each): run.repeated(each, 0).score() for each in options.rates},
        "seeds": len(results),
        run.experiment.metric: mean(values),
        "spread": stdev(values) if len(values) > 1 else None,
        **run.experiment.row(results),
        "config": run.repeated(rate, 0).config.to_json(),
    }


def commit() -> str | None:
    """The commit of the code, ending in "-dirty" if files were changed; None without a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed, perhaps below a checkout of something else
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
