"""Attractor and baselines at equal parameters, and at equal tokens or equal time, in one table.

Every model gets the same search over its learning rate, with one seed, judged on the first half
of the held-out text; then more seeds with the best rate. The table reports the second half. A
finished run is never repeated, and an interrupted one goes on.
"""

import dataclasses
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args, get_type_hints

import torch
from rich.console import Console
from rich.table import Table

from models.language import Mixer
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.checkpoints.manager import NAME, load_newest
from tasks.experiments.jobs import Job, SearchOptions, search_and_repeat
from tasks.lm.config import LanguageConfig, ModelName
from tasks.lm.data import Corpus, measure
from tasks.lm.experiment import train
from tasks.runs import RUNS, load_average


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions(SearchOptions):
    """Compare language models of equal size, trained on equally many tokens or for equal time.

    Attributes:
        models: Which.
        mixers: Backbones that each of them is given.
        ablations: Attractors that differ in some option, or several with commas between them, as
            in `injection=concat start=zeros solver=picard,free_steps=4`; each is a row of its
            own. `model=parcae,...` is a Parcae model that differs.
        backbone_blocks: Of the Attractor, whose parameter count the others match; by default the
            preset's.
        steps: Optimiser steps of a run: equal tokens. By default `minutes` decide.
    """

    models: tuple[ModelName, ...] = get_args(ModelName)
    mixers: tuple[Mixer, ...] = ("attention",)
    ablations: tuple[str, ...] = ()
    rates: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)
    backbone_blocks: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not ((self.models and self.mixers) or self.ablations):
            raise ValueError("Nothing to compare: give `models` and `mixers`, or `ablations`.")


@dataclasses.dataclass(frozen=True)
class _Run(Job):
    """One training run and its evaluation."""

    preset: str
    config: LanguageConfig
    folder: Path
    change: str = ""

    @property
    def label(self) -> str:
        """The name of this run in the table."""
        changes = [part for part in self.change.split(",") if not part.startswith("model=")]
        parts = [self.config.model, ",".join(changes)]
        if self.config.mixer != "attention" and not self.change:
            parts.append(self.config.mixer)
        return "-".join(filter(None, parts))

    @property
    def place(self) -> Path:
        """The folder of this run."""
        rate, seed = self.config.learning_rate, self.config.seed
        return self.folder / f"{self.label}-{rate:g}-seed{seed}"

    def finish(self) -> None:
        """Train, or go on, and evaluate on each half of the held-out text."""
        config = dataclasses.replace(self.config, out=self.place)
        self.place.mkdir(parents=True, exist_ok=True)
        path = self.place / NAME
        checkpoint = load_newest(path) if path.is_file() else None
        _, corpus, result = train(self.preset, config, self.place, checkpoint)
        model = config.build()
        load_average(model, Checkpoint.load(path), path)
        middle = len(corpus.held_out) // 2
        for name, part in (("choosing", slice(0, middle)), ("reported", slice(middle, None))):
            half = Corpus(corpus.tokenizer, corpus.train, corpus.held_out[part])
            result[name] = measure(model, half, config)
        if model.solving is not None:
            result["proposal"] = measure(model, half, config, max_steps=0)
        result["config"] = config.to_json()
        self.done.write_text(json.dumps(result) + "\n")

    def score(self) -> float:
        """See `Job`."""
        return -self.result()["choosing"]["bits_per_byte"]

    def summary(self) -> str:
        """See `Job`."""
        return f"{self.result()['reported']['bits_per_byte']:.4f} bits per byte"


def matched(config: LanguageConfig, model: ModelName, mixer: Mixer) -> LanguageConfig:
    """The configuration of another model, of the width that comes closest in parameters."""
    other = dataclasses.replace(config, model=model, mixer=mixer)
    wanted = _parameters(dataclasses.replace(config, model="attractor"))
    step = 2 * config.num_heads
    nearest = config.width // step
    reach = max(2, nearest // 4)
    widths = (step * n for n in range(max(1, nearest - reach), nearest + reach + 1))
    sized = [dataclasses.replace(other, width=width) for width in widths]
    return min(sized, key=lambda candidate: abs(_parameters(candidate) - wanted))


def ablated(base: LanguageConfig, text: str) -> LanguageConfig:
    """A configuration changed by options such as "name=value,..."; "model=..." names the model.

    Raises:
        ValueError: No such option, or no such value of it.
    """
    config = dataclasses.replace(base, model="attractor")
    hints = get_type_hints(LanguageConfig)
    kinds: dict[str, Any] = {
        f.name: type(getattr(config, f.name))
        for f in dataclasses.fields(config)
        if f.name not in ("learning_rate", "seed")  # those are searched and repeated
    }
    known = [name for name, kind in kinds.items() if kind in (str, int, float, bool)]
    truths = {"true": True, "false": False}
    changes: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in known or not value:
            raise ValueError(
                f"`ablations` takes name=value with one of the options {', '.join(known)}, got "
                f"{part!r}."
            )
        choices = tuple(truths) if kinds[name] is bool else get_args(hints[name])
        if choices and value not in choices:
            allowed = ", ".join(map(repr, choices))
            raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}.")
        try:
            changes[name] = truths[value] if kinds[name] is bool else kinds[name](value)
        except ValueError as error:
            wanted = kinds[name].__name__
            raise ValueError(f"`{name}` takes one {wanted}, got {value!r}.") from error
    return dataclasses.replace(config, **changes)


def _parameters(config: LanguageConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


def compare(name: str, base: LanguageConfig, options: CompareOptions) -> dict[str, Any]:
    """Finish all runs that are not done, then print the table and write it to the folder.

    Args:
        name: The preset's.
        base: Its configuration.
        options: What to compare.

    Returns:
        The rows of the table, best first, as JSON values.
    """
    base = options.applied(base, ("steps", "minutes", "threads", "backbone_blocks"))
    budget = f"{base.minutes:g}min" if base.steps is None else f"{base.steps}steps"
    label = f"{name}-{budget}-{base.backbone_blocks}+{base.refiner_blocks}blocks"
    label += f"-{base.threads}threads" if base.threads else ""
    folder = options.out or RUNS / "lm" / "compare" / label
    runs = [
        _Run(name, matched(base, model, mixer), folder)
        for model in options.models
        for mixer in options.mixers
    ]
    runs += [_Run(name, ablated(base, text), folder, text) for text in options.ablations]
    best = search_and_repeat(runs, options)
    rows = [_row(run, rate, options) for run, rate in zip(runs, best, strict=True)]
    rows.sort(key=lambda row: row["bits_per_byte"])
    blocks = {"backbone_blocks": base.backbone_blocks, "refiner_blocks": base.refiner_blocks}
    table = {"task": "lm", "preset": name, "budget": budget, **blocks, "rows": rows}
    (folder / "table.json").write_text(json.dumps(table) + "\n")
    _print(f"{name}, {budget} each", rows)
    return table


def _row(run: _Run, rate: float, options: CompareOptions) -> dict[str, Any]:
    results = [run.repeated(rate, seed).result() for seed in range(options.seeds)]
    bits = [result["reported"]["bits_per_byte"] for result in results]
    row = {
        "model": run.label,
        "parameters": results[0]["parameters"],
        "width": run.config.width,
        "rate": rate,
        "seeds": len(results),
        "bits_per_byte": mean(bits),
        "spread": stdev(bits) if len(bits) > 1 else None,
        "by_seed": bits,  # the same seed is the same text in the same order
        "perplexity": mean(result["reported"]["perplexity"] for result in results),
        "steps": mean(result["train_steps"] for result in results),
        "minutes": mean(result["train_minutes"] for result in results),
    }
    if "converged" in results[0]["reported"]:
        for key in ("converged", "mean_steps", "median_residual"):
            row[key] = mean(result["reported"][key] for result in results)
        row["proposal_loss_over_converged"] = mean(
            result["proposal"]["loss"] / result["reported"]["loss"] for result in results
        )
    return row


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    """Print the table of a comparison."""
    table = Table(title=title, title_justify="left", pad_edge=False)
    columns = ("model", "parameters", "rate", "bits per byte", "steps", "min", "solver", "T=0")
    for column in columns:
        table.add_column(column, overflow="fold", min_width=11 if column == "model" else None)
    for row in rows:
        spread = f" +- {row['spread']:.4f}" if row["spread"] is not None else ""
        solved = "mean_steps" in row
        table.add_row(
            row["model"],
            f"{row['parameters']:,}",
            f"{row['rate']:g}",
            f"{row['bits_per_byte']:.4f}{spread}",
            f"{row['steps']:.0f}",
            f"{row['minutes']:.1f}",
            f"{row['mean_steps']:.1f}" if solved else "-",
            f"{row['proposal_loss_over_converged'] - 1:+.1%}" if solved else "-",
        )
    Console().print(table)
