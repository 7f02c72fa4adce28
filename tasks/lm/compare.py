"""Which language models a comparison trains; see `tasks.experiments.compare`."""

import dataclasses
from typing import Any, get_args

from models.language import Mixer
from tasks.experiments.compare import compare, matched
from tasks.experiments.jobs import Run, SearchOptions
from tasks.lm.config import LanguageConfig, ModelName
from tasks.lm.experiment import TextExperiment
from tasks.runs import RUNS
from tasks.training.options import literal


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
    kinds = {n: type(v) for n, v in config.flat().items() if n not in (*searched, "model")}
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


def compare_language(preset: str, base: LanguageConfig, options: CompareOptions) -> dict[str, Any]:
    """Compare models; see `compare`.

    Args:
        preset: Its name.
        base: Its configuration.
        options: What to compare.
    """
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
