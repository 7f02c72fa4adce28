"""The experiments of a grid puzzle, and which models a comparison trains."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from models import GridModel
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.experiments.compare import COLUMNS, compare, matched
from tasks.experiments.jobs import Run, SearchOptions
from tasks.experiments.run import Data, Experiment
from tasks.output import SILENT, Progress
from tasks.puzzles.config import GridConfig, ModelName, TwoLatents
from tasks.puzzles.evaluate import predict, scores
from tasks.puzzles.report import SUBPLOTS, draw_run, measure, print_figures
from tasks.puzzles.task import GridTask, Sampler
from tasks.runs import RUNS, load_model
from tasks.training.task import Task

# Held-out puzzles of a validation during training.
VALIDATION_PUZZLES = 100


class Batches(Task):
    """Batches of puzzles from a sampler, and the scores of a validation.

    Args:
        sampler: Source of batches.
        count: Training puzzles that it draws from.
        held_out: Symbols and classes of the puzzles for validation.
        max_steps: Solver budget of validation; None for a model without a solve.
    """

    def __init__(
        self, sampler: Sampler, count: int, held_out: tuple[Tensor, Tensor], max_steps: int | None
    ):
        self.sampler, self.count, self.max_steps = sampler, count, max_steps
        self.held_out = held_out

    def batch(
        self, size: int, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Random training puzzles, each as a random symmetric copy of itself."""
        rows = torch.randint(self.count, (size,), generator=generator)
        return self.sampler(rows, generator, progress)

    def validate(self, model: GridModel) -> dict[str, float]:
        """See `Task`: here, exact accuracy on the held-out puzzles."""
        x, target = self.held_out
        if len(x) == 0:
            return {}
        found = predict(model, x, max_steps=self.max_steps)
        return {"test_exact": scores(found.classes, target)["exact_accuracy"]}

    def selection_score(self, validation: dict[str, float]) -> float:
        """See `Task`: here, exact accuracy."""
        return validation["test_exact"]

    def metrics(self, right: Tensor) -> dict[str, float]:
        """See `Task`: here, accuracy of cells and of whole answers."""
        return {
            "cell_accuracy": right.double().mean().item(),
            "exact_accuracy": right.flatten(1).all(1).double().mean().item(),
        }


def _exact(row: dict[str, Any]) -> str:
    spread = f" +- {row['spread']:.1%}" if row["spread"] is not None else ""
    return f"{row['exact_accuracy']:.1%}{spread}"


class GridExperiment(Experiment):
    """The experiments of one kind of puzzle."""

    subplots = SUBPLOTS
    metric, sign = "exact_accuracy", 1
    columns: ClassVar[Mapping[str, Callable[[dict[str, Any]], str]]] = {
        **COLUMNS,
        "exact": _exact,
        "4 x steps": lambda row: _cell(row, "exact_accuracy_4x", ".1%"),
        "converged": lambda row: _cell(row, "converged", ".1%"),
        "residual": lambda row: _cell(row, "median_residual", ".1e"),
    }

    def __init__(self, puzzles: GridTask[Any]) -> None:
        self.puzzles = puzzles
        self.task = puzzles.name

    def load(self, config: Any, checkpoint: Checkpoint | None, validate: bool = True) -> Data:
        """See `Experiment`."""
        task = self.puzzles
        print(f"Getting {task.noun}s ...", flush=True)
        train_set, test_set = task.load(config)
        train_set = task.enlarged(train_set, config)
        overlap = self._overlap(train_set, test_set, config)
        held_out = task.encode(test_set[: VALIDATION_PUZZLES if validate else 0], config)
        sampler, budget = task.sampler(train_set, config), config.solve.eval_max_steps
        batches = Batches(sampler, len(train_set), held_out, budget)
        return Data(batches, test_set, figures={"test_puzzles_in_training": overlap})

    def validated(self, held_out: Any) -> str:
        """See `Experiment`."""
        return f"{min(len(held_out), VALIDATION_PUZZLES)} {self.puzzles.noun}s"

    def model(self, config: Any, checkpoint: Path) -> nn.Module:
        """See `Experiment`."""
        return load_model(self.puzzles, checkpoint, device=config.train.device)[0]

    def describe(self, config: Any) -> str:
        """See `Experiment`: here, what the run costs."""
        from tasks.planning.plan import Plan

        return Plan(config).describe()

    def evaluate(
        self, model: Any, held_out: Any, config: Any, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """See `Experiment`."""
        figures = measure(self.puzzles, model, held_out, config, progress=progress)
        if model.solving is not None and held_out:
            progress.begin("pictures of a solve", 1)
            draw_run(self.puzzles, model, held_out[0], figures, config, folder)
        return figures

    def show(self, preset: str, config: Any, held_out: Any, figures: dict[str, Any]) -> None:
        """See `Experiment`."""
        what = f"{len(held_out)} held-out {self.puzzles.noun}s"
        print_figures(f"{config.model.name} on {what} ({preset})", figures, self.puzzles)

    def halves(
        self, model: Any, held_out: Any, config: Any, progress: Progress = SILENT
    ) -> dict[str, Any]:
        """See `Experiment`."""
        middle = len(held_out) // 2
        first, second = held_out[:middle], held_out[middle:]
        found = {
            "choosing": measure(self.puzzles, model, first, config, True, progress),
            "reported": measure(self.puzzles, model, second, config, True, progress),
        }
        if "converged" in found["reported"]:
            longer = config.changed(eval_max_steps=4 * config.solve.eval_max_steps)
            again = measure(self.puzzles, model, second, longer, True, progress)
            found["reported"]["exact_accuracy_4x"] = again["exact_accuracy"]
        return found

    def row(self, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `Experiment`."""
        figures = [result["reported"] for result in results]
        row: dict[str, Any] = {
            "train_steps": [result["train_steps"] for result in results],
            "valid": mean(figure["valid"] for figure in figures),
        }
        for key in ("converged", "median_residual", "mean_steps", "exact_accuracy_4x"):
            if key in figures[0]:
                row[key] = mean(figure[key] for figure in figures)
        return row

    def _overlap(self, train: list[Any], test: list[Any], config: GridConfig) -> int:
        """Count test puzzles that are training puzzles; generated sets never share one."""
        if config.data.train_data is None and config.data.test_data is None:
            return 0
        count, noun = self.puzzles.overlap(train, test, config), self.puzzles.noun
        if count:
            warnings.warn(
                f"{count} of {len(test)} test {noun}s are training {noun}s, perhaps in "
                "disguise: the accuracy will be too high. Use other files.",
                stacklevel=4,
            )
        return count


def _cell(row: dict[str, Any], key: str, form: str) -> str:
    return format(row[key], form) if key in row else "-"


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


def sized(config: GridConfig, model: ModelName) -> GridConfig:
    """The configuration of another model, of as many parameters as can be had.

    The two-latent models have no backbone, and put its blocks into their network; HRM splits
    its blocks between two networks.
    """
    if not issubclass(config.kinds[model].model, TwoLatents):
        return matched(config, model=model)
    whole: Any = config.adapted(model="attractor")
    blocks = whole.model.backbone_blocks + whole.model.refiner_blocks
    return matched(
        config, model=model, refiner_blocks=-(-blocks // 2) if model == "hrm" else blocks
    )


def compare_puzzles(
    task: GridTask[Any], preset: str, base: GridConfig, options: CompareOptions
) -> dict[str, Any]:
    """Compare models; see `compare`."""
    names = ("minutes", "test_puzzles", "width", "threads", "compile")
    base = options.applied(base, names)
    minutes = f"{base.train.minutes:g}"
    label = f"{preset}-{minutes}min-width{base.model.width}-{base.data.test_puzzles}puzzles"
    if base.train.threads is not None:
        label += f"-{base.train.threads}threads"
    if base.train.compile:
        label += "-compiled"
    folder = options.out or RUNS / task.name / "compare" / label
    experiment = GridExperiment(task)
    runs = [Run(experiment, preset, sized(base, model), folder, model) for model in options.models]
    task.enlarged(task.load(base)[0], base)  # once, before several processes look for them
    title = f"{task.name} {preset}, {minutes} minutes each"
    return compare(title, {"minutes": base.train.minutes}, runs, options)
