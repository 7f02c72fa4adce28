"""The flags of the commands of the language task, but for those of a configuration."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from tasks.flags import require_defaults
from tasks.lm.config import LanguageConfig
from tasks.lm.generate import Sampling
from tasks.training.options import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutOptions:
    """Which model is evaluated, and on what.

    Attributes:
        checkpoint: The model: a file, a run's folder, or the name of one that
            comes with the package. By default the newest under `runs/`, or else the package's.
        text: Other text than the run's: a file or a folder. All of it is evaluated on.
        limit: Only so many tokens.
        solver: Another solver than the run's.
        device: "auto", "cpu", "cuda" or "cuda:N".
        json: Also write the result here, and as a page beside it (`.html`); `-` prints it on a
            terminal too.
    """

    checkpoint: Path | None = None
    text: Path | None = None
    limit: int | None = None
    solver: str | None = None
    device: str = "auto"
    json: Path | None = None

    def __post_init__(self) -> None:
        _require_tokens(self.limit)


def _require_tokens(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ValueError(f"`--limit` must be at least 1, got {limit}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions(HeldOutOptions):
    """Evaluate a trained model on held-out text.

    Attributes:
        max_steps: Budget of solver updates, or number of loops; by default the run's.
        lambada: The published LAMBADA file (JSON lines), to predict its last words as well.
    """

    # Options of this command in earlier versions, which wrote nothing.
    elsewhere: ClassVar[dict[str, str]] = dict.fromkeys(("export", "draw"), "internalise")

    max_steps: int | None = None
    lambada: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps is not None and self.max_steps < 0:
            raise ValueError(f"`--max-steps` must be at least 0, got {self.max_steps}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InternaliseOptions(HeldOutOptions):
    """See what the solver of a trained model is still needed for.

    Attributes:
        export: Write a model whose budget is the recommended one.
        draw: A folder for pictures.
    """

    export: Path | None = None
    draw: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopsOptions:
    """See how the loss of trained models changes with more loops than they were trained with.

    Attributes:
        checkpoints: The models: files, folders of runs, or names of some that come with the
            package. By default the newest under `runs/`, or else the package's.
        text: Other text than the runs': a file or a folder. All of it is evaluated on.
        limit: Only so many tokens.
        device: "auto", "cpu", "cuda" or "cuda:N".
        draw: A folder for the picture.
        json: Also write the result here, and as a page beside it (`.html`); `-` prints it on a
            terminal too.
    """

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    text: Path | None = None
    limit: int | None = None
    device: str = "auto"
    draw: Path | None = None
    json: Path | None = None

    def __post_init__(self) -> None:
        _require_tokens(self.limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateOptions(Sampling):
    """Let a trained model go on with a text.

    Attributes:
        prompt: Its beginning; several are answered side by side.
        tokens: How many to write.
        checkpoint: The model: a file, a run's folder, or the name of one that
            comes with the package. By default the newest under `runs/`, or else the package's.
        max_steps: Budget of solver updates per token; by default the run's.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    prompt: Annotated[tuple[str, ...], tyro.conf.Positional] = ("",)
    tokens: int = 200
    checkpoint: Path | None = None
    max_steps: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("tokens", 1), ("max_steps", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"`{flag(name)}` must be at least {least}, got {value}.")
        if self.temperature == 0:
            require_defaults(self, ("top_k", "top_p", "seed"), "with a `--temperature` above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a trained model as a folder that the Hugging Face Hub takes, or as a program.

    Attributes:
        target: A folder, which receives weights, configuration and tokenizer for the Hugging Face
            Hub and `transformers`; or, if it ends in `.pt2`, a file that `torch.export.load` reads
            without this project.
        checkpoint: The model: a file, a run's folder, or the name of one that
            comes with the package. By default the newest under `runs/`, or else the package's.
        max_steps: A program's budget of solver updates; by default the run's.
        solver: A program's, by default the model's; one that only steps, such as "anderson".
    """

    target: tyro.conf.Positional[Path]
    checkpoint: Path | None = None
    max_steps: int | None = None
    solver: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Make a checkpoint of a model that was released with the paper.

    Attributes:
        folder: Of the model as downloaded, with `config.json` and `model.pt`.
        out: Folder of the checkpoint; by default one of this name in `runs/lm`.
        tokenizer: Its `tokenizer.json`, if it is not in the folder.
    """

    folder: tyro.conf.Positional[Path]
    out: Path | None = None
    tokenizer: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class HarnessOptions:
    """Evaluate a trained model on tasks of the lm-evaluation-harness.

    Attributes:
        tasks: Their names, or YAML files that describe one, with commas between them; or a folder
            with the tasks of CORE.
        checkpoint: The model, or a folder in the Hub's form; by default as in `eval`.
        limit: Only so many examples of each task.
        max_steps: Budget of solver updates; by default the run's.
        batch_size: Texts at a time.
        device: "auto", "cpu", "cuda" or "cuda:N".
        json: Also write the result here; `-` prints it on a terminal too.
    """

    tasks: str
    checkpoint: Path | None = None
    limit: int | None = None
    max_steps: int | None = None
    batch_size: int = 16
    device: str = "auto"
    json: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Write the tokens of a text into a folder, once, for `train --shards` to read.

    What is not named here is that of `--preset`, as in `train`: text, vocabulary, and how many
    tokens its run takes.

    Attributes:
        folder: New or empty.
        text: A file or folder of text.
        dataset: Instead: a data set.
        dataset_name: Its configuration, if it has several.
        column: Its column of texts.
        max_bytes: Of a text: no more than that. Of a data set: to learn tokens from.
        vocabulary: Tokens: 257 for bytes, more are learned.
        held_out: Share of the texts, or the end of one, to evaluate on.
        tokenizer: Of a model, or of another such folder, instead of learning one.
        tokens: Stop after so many to train on.
        shard_tokens: Tokens of a file, at most.
    """

    folder: tyro.conf.Positional[Path]
    text: Path | None = None
    dataset: str | None = None
    dataset_name: str | None = None
    column: str | None = None
    max_bytes: int | None = None
    vocabulary: int | None = None
    held_out: float | None = None
    tokenizer: Path | None = None
    tokens: int | None = None
    shard_tokens: int = 250_000_000

    def __post_init__(self) -> None:
        for name in ("tokens", "shard_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`{flag(name)}` must be at least 1, got {value}.")

    def applied(self, config: LanguageConfig) -> LanguageConfig:
        """The configuration of a preset, with what is named here."""
        names = ("text", "dataset", "dataset_name", "column", "max_bytes", "vocabulary", "held_out")
        named = {name: value for name in names if (value := getattr(self, name)) is not None}
        return config.changed(**named)
