"""A plan as `python -m tasks.<name> plan` reports it: tables for a person, JSON for a program."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from tasks.output import wrapped
from tasks.planning.cluster import (
    NODE,
    Cluster,
    Device,
    check_gpus,
    duration,
    fits,
    recommend,
    sample_name,
    steps_shown,
)
from tasks.planning.plan import Plan, show_bytes
from tasks.planning.starving import reading_plan

# Parameters below which a model is planned for one GPU, if the user does not say.
SMALL = 100_000_000
PURPOSES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "average": "averaged weights",
    "exchange": "buffers of the exchange",
    "slots": "the batch and its states",
    "activations": "activations and loss",
    "solver": "solver's history",
    "total": "total",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions(Device):
    """What a run will need and take, without making the model.

    Besides these, all flags of `train` change what is planned, as in `--model transformer`.

    Attributes:
        gpus: How many GPUs; by default one, or eight from 100 million parameters on.
        tokens: Budget in tokens, or in puzzles and optimiser steps; by default the preset's
            steps times its batch.
        json: Also write the result here; `-` prints it on a terminal too.
    """

    gpus: int | None = None
    tokens: Annotated[int | None, tyro.conf.arg(aliases=["--puzzles"])] = None
    json: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpus is not None:
            check_gpus(self.gpus)
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"`--tokens` or `--puzzles` must be at least 1, got {self.tokens}.")

    def cluster(self, parameters: int) -> Cluster:
        """The devices for a model of so many parameters."""
        gpus = self.gpus or (1 if parameters < SMALL else NODE)
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(Device)}
        return Cluster(**own, gpus=gpus)


def report(config: Any, options: PlanOptions) -> dict[str, Any]:
    """The plan of a configuration on these devices, as JSON values.

    See `tasks.planning.plan.Plan` for what the estimates leave out.
    """
    found = Plan(config)
    cluster = options.cluster(found.num_parameters)
    ways = fits(found, cluster)
    chosen, advice = recommend(found, cluster, ways)
    units = options.tokens
    if units is None and config.train.steps is not None:
        units = config.train.steps * found.config.train.batch_size * found.config.units_per_sample
    if not config.train.autocast:
        advice += (
            " The run computes in float32, which takes longer than at the peak that is assumed: "
            "use `--autocast`, or give its peak as `--peak-tflops`."
        )
    checkpoint = chosen is not None and chosen.memory.checkpoint
    steps, reading = steps_shown(found), config.data.reading()
    at_once = duration(found, cluster, steps[0], None, checkpoint)
    speed = at_once[f"{config.unit}s_per_second"]
    return {
        "parameters": found.parameters | {"total": found.num_parameters},
        "memory": [{**dataclasses.asdict(way.memory), "largest": way.largest} for way in ways],
        "training": [
            duration(found, cluster, count, units, checkpoint, reading) for count in steps
        ],
        "reading": None if reading is None else reading_plan(reading, speed, cluster.gpus),
        "unit": found.config.unit,
        "budget": units,
        "fits": chosen is not None,
        "recommendation": advice,
        "cluster": dataclasses.asdict(cluster),
    }


def show(title: str, found: Mapping[str, Any]) -> None:
    """Print the recommendation, and three tables."""
    print(wrapped(f"{title}: {found['recommendation']}\n"))
    parts = [[name, f"{count:,}"] for name, count in found["parameters"].items()]
    _print("Parameters", ["part", "parameters"], parts)
    cluster, unit, budget = found["cluster"], found["unit"], found["budget"]
    ways = found["memory"]
    rows = [[label, *(show_bytes(row[key]) for row in ways)] for key, label in PURPOSES.items()]
    rows.append([f"{sample_name(unit)} that fit", *(str(row["largest"]) for row in ways)])
    _print(f"{cluster['gpus']} x {cluster['gpu_memory']:g} GB", ["memory", *map(_way, ways)], rows)
    print(
        wrapped(
            "The solver's history is free again when the loss is taken: the total is that of the "
            "worst moment.\n"
        )
    )
    of = f"{budget:.3g} {unit}s" if budget else f"no budget: give `--{unit}s`"
    rows = [
        [
            str(row["solver_steps"]), f"{row[f'flops_per_{unit}'] / 1e9:.4g}",
            f"{row[f'{unit}s_per_second']:,}", _number(row["days"]), _number(row["cost"]),
        ]
        for row in found["training"]
    ]  # fmt: skip
    _print(
        f"Training at {cluster['utilisation']:.0%} of {cluster['peak_tflops']:g} TFLOP/s; {of}",
        ["solver steps", f"GFLOP per {unit}", f"{unit}s per second", "days", "cost"],
        rows,
    )
    if found["reading"] is not None:
        print(wrapped(found["reading"]["advice"]))


def _way(row: Mapping[str, Any]) -> str:
    again = "\ncheckpointing" if row["checkpoint"] else ""
    return f"{row['parallel']}{again}\n{row['micro_batch']} at a time"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _print(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name == header[0] else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
