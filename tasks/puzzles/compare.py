"""Which models of puzzles a comparison trains; see `tasks.experiments.compare`."""

import dataclasses
from typing import Any, get_args

from tasks.experiments.compare import compare, matched
from tasks.experiments.jobs import Run, SearchOptions
from tasks.puzzles.config import GridConfig, ModelName, TwoLatents
from tasks.puzzles.experiment import GridExperiment
from tasks.puzzles.task import GridTask
from tasks.runs import RUNS


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
    """Compare models; see `compare`.

    Args:
        task: The puzzles.
        preset: Its name.
        base: Its configuration.
        options: What to compare.
    """
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
