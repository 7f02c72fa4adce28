"""Configurations in sections: model, solve, train and data.

Each kind of model has its own section classes, so that a configuration holds no option of another
kind. Options have one flat namespace all the same: `--width` on the command line and
`config.changed(width=64)` find theirs by name.
"""

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_type_hints

from solvers.registry import unknown
from tasks.training.values import checked

PARTS = ("model", "solve", "train", "data")
# Options of earlier versions, and what they are called now. Checkpoints and results keep the old
# names, and are translated when they are read; the command line answers with the new ones.
RENAMED = {"free_steps": "train_max_steps", "eval_steps": "eval_max_steps", "depth": "max_steps"}
# Options that were true or false in earlier versions, and what these are called now.
TRUTHS = {"halting": {False: "none", True: "right"}}


def flag(name: str) -> str:
    """The flag of an option: "--train-max-steps"."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A group of options."""

    # Options that name files or folders which a run reads.
    paths: ClassVar[tuple[str, ...]] = ()
    # For an option that names a folder, the file in it that has the digests of all others.
    listed: ClassVar[Mapping[str, str]] = {}

    def unused(self) -> dict[str, str]:
        """The options that nothing reads, given the others, and what each needs for an effect."""
        return {}

    def reading(self) -> Any:
        """A `Reading`: what it costs to make batches of these data; None if too little to plan."""
        return None

    @classmethod
    def names(cls) -> list[str]:
        """The names of all options."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    @functools.cache
    def hints(cls) -> dict[str, Any]:
        """The types of all options, by name."""
        hints = get_type_hints(cls, include_extras=True)
        return {name: hints[name] for name in cls.names()}

    def require_recorded(self, otherwise: str = "") -> None:
        """Check that files are where a run read them, as its checkpoint says.

        Args:
            otherwise: What the command takes in place of them, as the end of a sentence.

        Raises:
            ValueError: One is not there.
        """
        for name in self.paths:
            if (named := getattr(self, name)) is None:
                continue
            path = named / self.listed.get(name, "")
            if not path.exists():
                raise ValueError(
                    f"There is nothing at {path}, which the run in this checkpoint reads as its "
                    f"`{flag(name)}`. Move it back to there, or make a link to it there{otherwise}."
                )

    def require(self, least: float, *names: str, most: float = math.inf) -> None:
        """Check that options lie in a range, or are None.

        Raises:
            ValueError: One does not.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and value < least:
                bound = "0 or more" if least == 0 else f"at least {least:g}"
                raise ValueError(f"`{name}` must be {bound}, got {value!r}.")
            if value is not None and value > most:
                raise ValueError(f"`{name}` must be at most {most:,}, got {value!r}.")


@dataclass(frozen=True, kw_only=True)
class NoSolve(Section):
    """A network that is not solved."""

    train_steps = 0
    eval_max_steps = None


@dataclass(frozen=True)
class Kind:
    """The sections of one kind of model; those of data are the same for all.

    Attributes:
        model: Its shape.
        solve: How it is solved in training and in evaluation.
        train: How it is trained.
    """

    model: type[Any]
    solve: type[Any]
    train: type[Any]


@dataclass(frozen=True, kw_only=True)
class Config(ABC):
    """All options of a run.

    Attributes:
        model: The network.
        solve: How it is solved; without options for a network that is not.
        train: How it is trained.
        data: What it is trained and evaluated on.
    """

    kinds: ClassVar[dict[str, Kind]]
    data_type: ClassVar[type[Any]]
    # Of this task, where they differ from the defaults of the sections; "model" names the kind.
    defaults: ClassVar[dict[str, Any]]
    # Options that configurations of earlier versions have and this task has no use for.
    dropped: ClassVar[frozenset[str]] = frozenset()
    unit: ClassVar[str]

    model: Any
    solve: Any
    train: Any
    data: Any

    @property
    @abstractmethod
    def length(self) -> int:
        """Number of inputs in a row of the batch."""

    @property
    def state_length(self) -> int:
        """Number of places in the state of a row, where one segment goes on from another."""
        return self.length

    @property
    @abstractmethod
    def num_inputs(self) -> int:
        """Number of values that an input may have, from 0 on."""

    @property
    def num_classes(self) -> int:
        """Number of classes, from 0 on."""
        return self.num_inputs

    @property
    def units_per_sample(self) -> int:
        """Number of units, see `unit`, in a row of the batch."""
        return self.length if self.unit == "token" else 1

    @property
    def train_steps(self) -> int:
        """Updates that the solver makes in a training segment, at most."""
        return self.solve.train_steps

    @abstractmethod
    def build(self) -> Any:
        """The model, with fresh weights."""

    @classmethod
    def sections(cls, kind: str) -> dict[str, type[Section]]:
        """The section classes of a kind of model."""
        if not isinstance(kind, str) or kind not in cls.kinds:
            raise ValueError(unknown("model", kind, list(cls.kinds), "Models"))
        found = cls.kinds[kind]
        classes = (found.model, found.solve, found.train, cls.data_type)
        return dict(zip(PARTS, classes, strict=True))

    @classmethod
    def of(cls, **options: Any) -> Self:
        """A configuration from options by name; "model" names the kind.

        Raises:
            ValueError: An option is unknown or out of its range, or has no effect.
        """
        return cls._from({}, options)

    def changed(self, **options: Any) -> Self:
        """This configuration with other values of some options; see `of`.

        With another "model", all values are kept that it has a use for.
        """
        return self._from(self.flat(), options)

    def adapted(self, **options: Any) -> Self:
        """This configuration with those of some options that have an effect; see `changed`."""
        return self._from({**self.flat(), **options}, {})

    @classmethod
    def _from(cls, values: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        """A configuration of those `values` that apply, and of `options`, all of which must."""
        values = {**cls.defaults, **values, **options}
        sections = {}
        for part, section in cls.sections(values["model"]).items():
            hints = {n: hint for n, hint in section.hints().items() if n in values}
            sections[part] = section(**{n: checked(n, values[n], h) for n, h in hints.items()})
        config = cls(**sections)
        config.refuse_unused(options)
        return config

    def flat(self) -> dict[str, Any]:
        """All options by name, and the kind of model as "model"."""
        values = {"model": self.model.name}
        for part in PARTS:
            section = getattr(self, part)
            values |= {name: getattr(section, name) for name in section.names()}
        return values

    def unused(self) -> dict[str, str]:
        """The options that nothing reads, given the others; see `Section.unused`."""
        return {n: w for part in PARTS for n, w in getattr(self, part).unused().items()}

    def refuse_unused(self, names: Iterable[str]) -> None:
        """Check that options have an effect.

        Raises:
            ValueError: One has none in this configuration.
        """
        unused, flat = self.unused(), self.flat()
        for name in names:
            if name in unused:
                raise ValueError(f"`{flag(name)}` has an effect only {unused[name]}.")
            if name not in flat:
                raise ValueError(self._foreign(name))

    def _foreign(self, name: str) -> str:
        """Why a configuration of this kind has no such option."""
        now = RENAMED.get(name)
        if now is not None and any(now in self.hints(kind) for kind in self.kinds):
            return f"`{flag(name)}` is called `{flag(now)}` now."
        kinds = [kind for kind in self.kinds if name in self.hints(kind)]
        if not kinds:
            return unknown("option", name, sorted(self.flat()), "Options")
        article = "an" if self.model.name[0] in "aeu" else "a"
        return (
            f"`{flag(name)}` is an option of `--model {'|'.join(kinds)}`; this run trains "
            f"{article} {self.model.name}."
        )

    @classmethod
    def hints(cls, kind: str) -> dict[str, Any]:
        """The types of all options of a kind of model, by name."""
        return {n: h for section in cls.sections(kind).values() for n, h in section.hints().items()}

    def to_json(self) -> dict[str, Any]:
        """The options as JSON values by section, without those that nothing reads."""
        unused = self.unused()
        found: dict[str, Any] = {}
        for part in PARTS:
            section = getattr(self, part)
            values = {n: getattr(section, n) for n in section.names() if n not in unused}
            found[part] = {n: str(v) if isinstance(v, Path) else v for n, v in values.items()}
        found["model"] = {"name": self.model.name, **found["model"]}
        return found

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Undo `to_json`; options that are missing take their defaults.

        Configurations of earlier versions, which had all options on one level, are read as well.

        Raises:
            ValueError: An option that this version does not have.
        """
        flat = dict(values)
        if isinstance(values.get("model"), Mapping):
            sections = {part: flat.pop(part, {}) for part in PARTS}
            for part, section in sections.items():
                if not isinstance(section, Mapping):
                    raise ValueError(f"`{part}` must be a section with options")
                flat |= section
            flat["model"] = flat.pop("name", None)
        flat = {"model": cls.defaults["model"]} | {RENAMED.get(n, n): v for n, v in flat.items()}
        flat |= {n: now[flat[n]] for n, now in TRUTHS.items() if isinstance(flat.get(n), bool)}
        known = {name for kind in cls.kinds for name in cls.hints(kind)} | {"model"}
        if strangers := set(flat) - known - cls.dropped:
            raise ValueError(f"it has the options {_listed(sorted(strangers))}")
        return cls._from(flat, {})


def _listed(names: Sequence[str]) -> str:
    """Names in one short line, however many and however long they are."""
    first = [str(name)[:60] for name in names[:5]]
    return ", ".join(first) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Section):
    """How to train. docs/training.md says more about each option.

    Attributes:
        minutes: Budget in minutes of training time.
        steps: Budget in optimiser steps instead.
        seed: Of weights, data and augmentation.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads; by default torch's choice.
        out: Folder of the run; by default in `runs/`.
        weights: Begin with those of a checkpoint, widened if need be.
        save_every: Seconds between checkpoints.
        checkpoints: One file, or a share per process.
        keep_last: Checkpoints to keep besides the best.
        batch_size: Samples of an optimiser step.
        accumulate: Micro-batches that a batch is split into.
        learning_rate: Peak, reached after `warmup`.
        schedule: Of the rate: falls at once, late, late to 0, or never.
        optimizer: Which one; "muon": for matrices, AdamW for others.
        warmup: Steps of linear warm-up.
        weight_decay: Of the optimiser.
        clip: Largest gradient norm.
        averaging: Decay of the averaged weights.
        autocast: Networks in bfloat16.
        parallel: How processes share the work.
        checkpoint_activations: Recompute the backbone's.
        compile: Compile the blocks, for some 20 s.
    """

    minutes: float = 8.0
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    out: Path | None = None
    weights: Path | None = None
    save_every: float = 60.0
    # Not chosen by `parallel`: a file is easier to move, and shares only pay where gathering and
    # writing all of it takes long.
    checkpoints: Literal["file", "sharded"] = "file"
    keep_last: int = 2
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 2e-3
    schedule: Literal["cosine", "trapezoid", "trapezoid-to-zero", "constant"] = "cosine"
    optimizer: Literal["adamw", "muon", "normuon", "adam-atan2"] = "adamw"
    warmup: int = 50
    weight_decay: float = 0.05
    clip: float = 1.0
    averaging: float = 0.99
    autocast: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    checkpoint_activations: bool = False
    compile: bool = False

    # What the training loop reads of every run. Models whose samples stay in the batch for several
    # segments have options of these names.
    segments = 1
    refill = False
    loss = "softmax"
    adamw_rate, refiner_rate, refiner_decay = 1.0, 1.0, 0.0  # of language models

    def __post_init__(self) -> None:
        for name in ("minutes", "batch_size", "learning_rate", "clip", "save_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)!r}.")
        self.require(1, "steps", "accumulate")
        self.require(1, "threads", most=1000)
        self.require(2, "keep_last", most=1000)
        if not 0 <= self.averaging < 1:
            raise ValueError(f"`averaging` must lie in [0, 1), got {self.averaging!r}.")

    def unused(self) -> dict[str, str]:
        """See `Section`."""
        return {} if self.steps is None else {"minutes": "without `--steps`"}
