"""One experiment: load the data, train, evaluate, draw, and store the result."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from models.widen import widened
from tasks.checkpoints.checkpoint import Checkpoint, bounded_by, load_weights
from tasks.device import choose_device, compile_blocks
from tasks.output import SILENT, Progress, wrapped
from tasks.reports.logger import ProgressBar
from tasks.reports.page import write_page
from tasks.reports.plots import Subplot, plot_learning, title_of_run
from tasks.runs import (
    RESULT,
    averaged_weights,
    export,
    locate,
    read_checkpoint,
    require_task,
)
from tasks.training.options import Config
from tasks.training.stop_signal import Interrupted
from tasks.training.task import Task

if TYPE_CHECKING:
    from tasks.training.trainer import Trainer


@dataclass(frozen=True)
class Data:
    """What an experiment trains and evaluates on.

    Attributes:
        batches: The data as the training loop sees them.
        held_out: What is evaluated on.
        source: What the training data are, for a message.
        meta: Stored in the checkpoint besides the configuration.
        figures: What the result says of the data.
    """

    batches: Task
    held_out: Any
    source: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


class Experiment(ABC):
    """What the experiments of one task have of their own; it must be possible to pickle it.

    Attributes:
        task: Name of the task.
        subplots: Of the picture of training.
        metric: The main one, by which the rows of a comparison are sorted.
        sign: 1 if more of that metric is better, -1 if less is.
        columns: Of a comparison's table: its heading, and the cell of a row.
    """

    task: str
    subplots: ClassVar[Sequence[Subplot]]
    metric: ClassVar[str]
    sign: ClassVar[int]
    columns: ClassVar[Mapping[str, Callable[[dict[str, Any]], str]]]

    @abstractmethod
    def load(self, config: Any, checkpoint: Checkpoint | None, validate: bool = True) -> Data:
        """The data of a run, which goes on from a checkpoint or not.

        Held-out data are not looked at during training unless `validate` says so.
        """

    @abstractmethod
    def validated(self, held_out: Any) -> str:
        """On how much of the held-out data the validations of a run are, in words."""

    @abstractmethod
    def model(self, config: Any, checkpoint: Path) -> nn.Module:
        """The averaged model of a checkpoint, ready for evaluation."""

    @abstractmethod
    def evaluate(
        self, model: nn.Module, held_out: Any, config: Any, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """Evaluate a finished run and draw pictures; the figures, as JSON values."""

    @abstractmethod
    def show(self, preset: str, config: Any, held_out: Any, figures: dict[str, Any]) -> None:
        """Print the figures of an evaluation."""

    @abstractmethod
    def halves(
        self, model: nn.Module, held_out: Any, config: Any, progress: Progress = SILENT
    ) -> dict[str, Any]:
        """Evaluate for a comparison: figures "choosing" and "reported", of a half each.

        All processes of `torchrun` call it.
        """

    @abstractmethod
    def row(self, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A row of a comparison besides the main metric, from the results of several seeds."""

    def describe(self, config: Any) -> str | None:
        """What is printed before training, if anything."""
        return None

    def prepare(self, model: nn.Module, config: Any) -> None:
        """Change a model before it is trained; not the averaged one."""
        return


def run(
    experiment: Experiment,
    preset: str,
    config: Config,
    folder: Path,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Any]:
    """Train, or continue from a checkpoint of the same configuration, then evaluate.

    The folder receives checkpoint, weights, log, pictures, `result.json`, and all of that as one
    page, `report.html`.

    Returns:
        The result, as JSON values.

    Raises:
        OSError: The run is trained, but its results cannot be written.
        Interrupted: By Ctrl-C, SIGTERM or SIGHUP in training, or by Ctrl-C after it; a checkpoint
            is left.
    """
    began = time.monotonic()
    trainer, held_out, result = train(experiment, preset, config, folder, checkpoint)
    if not trainer.group.first:
        return result
    try:
        model = experiment.model(config, trainer.path)
        rows, rtol = trainer.history.rows, getattr(config.solve, "rtol", None)
        picture = folder / "learning.png"
        name, validated = f"{experiment.task} {preset}", experiment.validated(held_out)
        title = title_of_run(name, config.train.seed, trainer.step, validated)
        plot_learning(rows, picture, experiment.subplots, config.train.segments, rtol, title)
        with ProgressBar() as bar:
            figures = experiment.evaluate(model, held_out, config, folder, bar)
        result |= {
            "eval": figures,
            "wall_seconds": round(time.monotonic() - began, 1),
            "config": config.to_json(),
        }
        export(trainer.path, folder / "model.safetensors")
        (folder / RESULT).write_text(json.dumps(result) + "\n")
        write_page(folder / "report.html", f"{experiment.task}, {preset}", result, folder)
    except KeyboardInterrupt:
        raise Interrupted(trainer.path) from None
    except OSError as error:
        raise OSError(
            f"{error} The run is trained, and {trainer.path} is complete: evaluate it by `eval "
            "--checkpoint`, or let `--resume` write what is missing."
        ) from error
    experiment.show(preset, config, held_out, figures)
    return result


def train(
    experiment: Experiment,
    preset: str,
    config: Config,
    folder: Path,
    checkpoint: Checkpoint | None = None,
    validate: bool = True,
) -> tuple[Trainer, Any, dict[str, Any]]:
    """Train as `run` does, without evaluating.

    Returns:
        The trainer, the held-out data, and what the result says of the training.
    """
    # Here, since commands that do not train need nothing of what it imports.
    from tasks.training.trainer import Trainer

    options = config.train
    torch.manual_seed(options.seed)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    print(
        f"On {device}, threads {torch.get_num_threads()}, torch {torch.__version__}, seed "
        f"{options.seed}",
        flush=True,
    )
    first = None if checkpoint is not None else _first_weights(experiment.task, options.weights)
    data = experiment.load(config, checkpoint or first, validate)
    if checkpoint is None:
        model = config.build()
    else:  # it has the size of its weights
        with bounded_by(checkpoint.group("model"), config, checkpoint.path):
            model = config.build()
    if first is not None:
        load_weights(model, widened(model, averaged_weights(first)), first.path)
    model = model.to(device)
    if options.compile:
        compile_blocks(model)
    meta = {"task": experiment.task, "preset": preset, "config": config.to_json(), **data.meta}
    trainer = Trainer(data.batches, model, config, folder, config.solve.train_steps, meta)
    experiment.prepare(model, config)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    if (description := experiment.describe(config)) is not None:
        print(wrapped(description))
    source = f"{data.source}, " if data.source else ""
    line = f"Training {config.model.name}, {parameters:,} parameters, {source}in {folder}"
    print(wrapped(line), flush=True)
    trainer.run()
    figures = {
        "task": experiment.task,
        "preset": preset,
        "parameters": parameters,
        "train_steps": trainer.step,
        "train_minutes": round(trainer.seconds / 60, 2),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **data.figures,
    }
    if config.unit == "token":
        figures["train_tokens"] = trainer.step * options.batch_size * config.units_per_sample
    return trainer, data.held_out, figures


def _first_weights(task: str, named: Path | None) -> Checkpoint | None:
    """The checkpoint of this task whose weights a run begins with, if one is named."""
    if named is None:
        return None
    found = read_checkpoint(locate(task, named))
    require_task(task, found)
    return found
