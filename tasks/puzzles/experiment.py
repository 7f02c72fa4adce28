"""The experiments of a grid puzzle; see `tasks.experiments.run`."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

from torch import nn

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.experiments.compare import COLUMNS
from tasks.experiments.run import Data, Experiment
from tasks.puzzles.batches import VALIDATION_PUZZLES, Batches
from tasks.puzzles.config import GridConfig
from tasks.puzzles.report import SUBPLOTS, draw_run, measure, print_figures
from tasks.puzzles.task import GridTask
from tasks.runs import load_model


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

    def model(self, config: Any, checkpoint: Path) -> nn.Module:
        """See `Experiment`."""
        return load_model(self.puzzles, checkpoint, device=config.train.device)[0]

    def describe(self, config: Any) -> str:
        """See `Experiment`: here, what the run costs."""
        from tasks.planning.plan import Plan

        return Plan(config).describe()

    def evaluate(self, model: Any, held_out: Any, config: Any, folder: Path) -> dict[str, Any]:
        """See `Experiment`."""
        figures = measure(self.puzzles, model, held_out, config)
        if model.solving is not None and held_out:
            draw_run(self.puzzles, model, held_out[0], figures, config, folder)
        return figures

    def show(self, preset: str, config: Any, held_out: Any, figures: dict[str, Any]) -> None:
        """See `Experiment`."""
        what = f"{len(held_out)} held-out {self.puzzles.noun}s"
        print_figures(f"{config.model.name} on {what} ({preset})", figures, self.puzzles)

    def halves(self, model: Any, held_out: Any, config: Any) -> dict[str, Any]:
        """See `Experiment`."""
        middle = len(held_out) // 2
        first, second = held_out[:middle], held_out[middle:]
        found = {
            "choosing": measure(self.puzzles, model, first, config, quick=True),
            "reported": measure(self.puzzles, model, second, config, quick=True),
        }
        if "converged" in found["reported"]:
            longer = config.changed(eval_max_steps=4 * config.solve.eval_max_steps)
            again = measure(self.puzzles, model, second, longer, quick=True)
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
