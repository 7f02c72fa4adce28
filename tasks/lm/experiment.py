"""The experiments of the language task, and which models a comparison trains."""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar, Literal, get_args, get_origin

import torch
from torch import nn

from implicit import FixedPointLayer
from models.language import Mixer
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.distributed import Group
from tasks.experiments.compare import COLUMNS, compare, matched
from tasks.experiments.jobs import Run, SearchOptions
from tasks.experiments.run import Data, Experiment
from tasks.lm.config import LanguageConfig, LanguageTask, Solve
from tasks.lm.data import Corpus, measure
from tasks.lm.generate import Sampling, generate
from tasks.lm.internalise import BUDGETS, by_budget
from tasks.lm.networks import ModelName
from tasks.lm.pictures import SUBPLOTS, plot_budgets
from tasks.lm.stream import load_batches
from tasks.lm.tokenizer import END, read_tokenizer
from tasks.output import SILENT, Progress, visible
from tasks.reports.logger import print_table
from tasks.runs import RUNS, load_model
from tasks.training.values import literal

SAMPLE_TOKENS = 120


def _bits(row: dict[str, Any]) -> str:
    spread = f" +- {row['spread']:.4f}" if row["spread"] is not None else ""
    return f"{row['bits_per_byte']:.4f}{spread}"


class TextExperiment(Experiment):
    """The experiments of the language task."""

    task = "lm"
    subplots = SUBPLOTS
    metric, sign = "bits_per_byte", -1
    columns: ClassVar[Mapping[str, Callable[[dict[str, Any]], str]]] = {
        **COLUMNS,
        "bits per byte": _bits,
        "steps": lambda row: f"{row['steps']:.0f}",
        "min": lambda row: f"{row['minutes']:.1f}",
        "solver": lambda row: f"{row['mean_steps']:.1f}" if "mean_steps" in row else "-",
        "T=0": lambda row: (
            f"{row['proposal_loss_over_converged'] - 1:+.1%}" if "mean_steps" in row else "-"
        ),
    }

    def load(self, config: Any, checkpoint: Checkpoint | None, validate: bool = True) -> Data:
        """See `Experiment`."""
        print("Reading text ...", flush=True)
        state = None if checkpoint is None else read_tokenizer(checkpoint, config).to_json()
        batches = load_batches(config, state)
        return Data(
            batches,
            held_out=batches.corpus,
            source=f"on {batches.source}",
            meta={"tokenizer": batches.corpus.tokenizer.to_json()},
        )

    def prepare(self, model: nn.Module, config: Any) -> None:
        """See `Experiment`."""
        rtol = (isinstance(config.solve, Solve) and config.solve.train_rtol) or 0.0
        if config.train.autocast:
            rtol = max(rtol, torch.finfo(torch.bfloat16).eps)
        _loosen(model, rtol)

    def validated(self, held_out: Corpus) -> str:
        """See `Experiment`."""
        return held_out.validated

    def model(self, config: Any, checkpoint: Path) -> nn.Module:
        """See `Experiment`."""
        return load_model(LanguageTask, checkpoint, device=config.train.device)[0]

    def evaluate(
        self, model: Any, held_out: Corpus, config: Any, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """See `Experiment`: metrics, loss by solver budget with a plot, and a text sample."""
        figures = measure(model, held_out, config, progress=progress)
        if model.solving is not None:
            rows = by_budget(model, held_out, config, BUDGETS, progress=progress)
            figures["by_budget"] = rows
            plot_budgets(figures["by_budget"], folder / "budgets.png", model.solving.solver.rtol)
        progress.begin("a text sample", 1)
        sampling = Sampling(seed=config.train.seed)
        drawn = generate(
            model, [[END]], tokens=SAMPLE_TOKENS, context=config.data.context, sampling=sampling
        )
        figures["sample"] = held_out.tokenizer.decode([int(token) for token in drawn])
        return figures

    def show(self, preset: str, config: Any, held_out: Any, figures: dict[str, Any]) -> None:
        """See `Experiment`."""
        print_figures(f"{config.model.name} on held-out text ({preset})", figures)

    def halves(
        self, model: Any, held_out: Corpus, config: Any, progress: Progress = SILENT
    ) -> dict[str, Any]:
        """See `Experiment`."""
        middle = len(held_out.held_out) // 2
        first, second = (
            dataclasses.replace(held_out, held_out=held_out.held_out[part])
            for part in (slice(0, middle), slice(middle, None))
        )
        shared: dict[str, Any] = {"group": Group.current(), "progress": progress}
        found = {
            name: measure(model, half, config, **shared)
            for name, half in (("choosing", first), ("reported", second))
        }
        if model.solving is not None:
            found["proposal"] = measure(model, second, config, max_steps=0, **shared)
        return found

    def row(self, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `Experiment`."""
        row: dict[str, Any] = {
            # The same seed is the same text in the same order.
            "by_seed": [result["reported"]["bits_per_byte"] for result in results],
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


def _loosen(model: nn.Module, rtol: float) -> None:
    """Let the solver stop at this relative residual in training, if its own is tighter.

    Under autocast rounding keeps the residual above a tighter one, and the solver would go on
    until its free steps are used up. Looks and evaluation, in float32, are of the averaged
    model, which keeps its tolerance.
    """
    for layer in model.modules():
        if isinstance(layer, FixedPointLayer):
            wanted = max(rtol, layer.solver.rtol)
            layer.solver = dataclasses.replace(layer.solver, rtol=wanted)


def print_figures(title: str, figures: dict[str, Any]) -> None:
    """Print the table of an evaluation, and a text sample below it."""
    rows = {
        "loss (nats per token)": f"{figures['loss']:.4f}",
        "perplexity": f"{figures['perplexity']:.2f}",
        "bits per byte": f"{figures['bits_per_byte']:.4f}",
        "held-out tokens": f"{figures['tokens']:,}",
    }
    if "converged" in figures:
        rows |= {
            "tokens converged": f"{figures['converged']:.1%}",
            "solver steps": f"{figures['mean_steps']:.1f}",
            "median relative residual": f"{figures['median_residual']:.1e}",
            "distance of the proposal, |y0 - y*| / |y*|": f"{figures['distance']:.3f}",
        }
    if "passages" in figures:
        rows |= {
            "LAMBADA perplexity (per word)": f"{figures['lambada_perplexity']:.2f}",
            "LAMBADA last words right": f"{figures['lambada_accuracy']:.1%} of "
            f"{figures['passages']}",
        }
    for row in figures.get("by_budget", []):
        steps = row["max_steps"]
        rows[f"loss after {steps} step{'s' * (steps != 1)}"] = f"{row['loss']:.4f}"
    print_table(title, rows)
    if "sample" in figures:
        print(visible(figures["sample"]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions(SearchOptions):
    """Compare language models of equal size, trained on equally many tokens or for equal time.

    Attributes:
        models: Which.
        mixers: Backbones that each of them is given, but for "deq", which has none.
        ablations: Attractors that differ in some option, or several with commas between them, as
            in `injection=concat start=zeros solver=picard,train_max_steps=4`; each is a row of
            its own. `model=parcae,...` is a Parcae model that differs.
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
        if self.steps is not None and self.minutes is not None:
            raise ValueError("Give `--steps` or `--minutes`: with steps, minutes have no effect.")


def ablated(base: LanguageConfig, text: str) -> LanguageConfig:
    """A configuration changed by options such as "name=value,..."; "model=..." names the model.

    Raises:
        ValueError: No such option, or no such value of it.
    """
    parts: dict[str, str] = {}
    for part in text.split(","):
        name, _, parts[name] = part.partition("=")
    config = base.adapted(model=parts.pop("model", "attractor"))
    hints = config.hints(config.model.name)
    searched = ("learning_rate", "seed")  # those are searched and repeated
    kinds = {n: _kind(hints[n]) for n in config.flat() if n not in (*searched, "model")}
    known = [name for name, kind in kinds.items() if kind in (str, int, float, bool)]
    truths = {"true": True, "false": False}
    changes: dict[str, Any] = {}
    for name, value in parts.items():
        if name not in known:
            config.refuse_unused([name])
        if name not in known or not value:
            raise ValueError(
                f"`ablations` takes name=value with one of the options {', '.join(known)}, got "
                f"{name!r}."
            )
        choices = tuple(truths) if kinds[name] is bool else literal(hints[name])
        if choices and value not in choices:
            allowed = ", ".join(map(repr, choices))
            raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}.")
        try:
            changes[name] = truths[value] if kinds[name] is bool else kinds[name](value)
        except ValueError as error:
            wanted = kinds[name].__name__
            raise ValueError(f"`{name}` takes one {wanted}, got {value!r}.") from error
    return config.changed(**changes)


def _kind(hint: Any) -> Any:
    """The type of an option's values other than none."""
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(kind for kind in kinds if kind is not types.NoneType)
    return str if get_origin(kind) is Literal else kind


def compare_language(preset: str, base: LanguageConfig, options: CompareOptions) -> dict[str, Any]:
    """Compare models; see `compare`."""
    base = options.applied(base, ("steps", "minutes", "threads", "backbone_blocks"))
    train, model = base.train, base.model
    budget = f"{train.minutes:g}min" if train.steps is None else f"{train.steps}steps"
    label = f"{preset}-{budget}-{model.backbone_blocks}+{model.refiner_blocks}blocks"
    label += f"-{train.threads}threads" if train.threads else ""
    folder = options.out or RUNS / "lm" / "compare" / label
    experiment = TextExperiment()
    configs: dict[str, LanguageConfig] = {}
    for name in options.models:
        for mixer in options.mixers if name != "deq" else options.mixers[:1]:
            plain = mixer == "attention" or name == "deq"
            configs[name if plain else f"{name}-{mixer}"] = matched(base, model=name, mixer=mixer)
    for text in options.ablations:
        config = ablated(base, text)
        changes = ",".join(part for part in text.split(",") if not part.startswith("model="))
        configs["-".join(filter(None, (config.model.name, changes)))] = config
    runs = [Run(experiment, preset, config, folder, label) for label, config in configs.items()]
    blocks = {"backbone_blocks": model.backbone_blocks, "refiner_blocks": model.refiner_blocks}
    return compare(f"{preset}, {budget} each", {"budget": budget, **blocks}, runs, options)
