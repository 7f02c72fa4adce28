"""Run folders and the models in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from models import GridModel, GridTransformer
from solvers.registry import UnknownName
from tasks.checkpoints.file import Checkpoint, CheckpointError, load_weights
from tasks.checkpoints.manager import FOLDER, NAME, PREVIOUS
from tasks.device import choose_device
from tasks.puzzles.config import GridConfig
from tasks.puzzles.task import GridTask

RUNS = Path("runs")


def new_folder(wanted: Path | None, task: str, name: str) -> Path:
    """Create the folder of a run; never one that holds a checkpoint already.

    Raises:
        ValueError: The named folder holds a run, or cannot be written.
    """
    folder = wanted or RUNS / task / name
    number = 1
    # Of the folders the newest may be missing; see `load_newest`.
    names = (NAME, FOLDER, Path(PREVIOUS).stem)
    while held := [path for name in names if (path := folder / name).exists()]:
        if wanted is not None:
            raise ValueError(
                f"{folder} already holds a run. Go on with it by `--resume {held[0]}`, or name "
                "another folder with `--out`."
            )
        number += 1
        folder = RUNS / task / f"{name}-{number}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"The output folder {folder} cannot be written ({error.strerror}). Name another "
            "with `--out`."
        ) from error
    return folder


def newest_checkpoint(task: Any, fits: Callable[[Any], bool], what: str) -> Path:
    """The last trained checkpoint in `runs/` whose configuration `fits`.

    Checkpoints of other versions must be named to be used.

    Raises:
        CheckpointError: There is none.
    """
    folder = RUNS / task.name
    found = [path for name in (NAME, FOLDER) for path in folder.glob(f"*/{name}")]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        try:
            config = read_config(task, Checkpoint.load(path), path)
        except CheckpointError:
            continue
        if fits(config):
            return path
    raise CheckpointError(
        f"No checkpoint {what} under {folder}. Train one with `python -m tasks.{task.name}`, or "
        "name one with `--checkpoint`."
    )


def newest_grid_checkpoint(task: GridTask[Any, Any], side: int) -> Path:
    """Likewise, for grids of this size; baselines without a solve must be named."""
    return newest_checkpoint(
        task,
        lambda config: config.spec().side == side and config.model != "transformer",
        f"for boards of {side * side} cells",
    )


def read_config(task: Any, checkpoint: Checkpoint, path: Path) -> Any:
    """The configuration that a checkpoint was trained with.

    Raises:
        CheckpointError: It belongs to another task, or to another version, or names a solver or
            mode that no module has registered.
    """
    if checkpoint.meta.get("task") != task.name:
        raise CheckpointError(
            f"{path} was trained on {checkpoint.meta.get('task')!r}, not on {task.name!r}. Name a "
            "checkpoint of this task with `--checkpoint`."
        )
    try:
        return task.config_type.from_json(checkpoint.meta["config"])
    except UnknownName as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} comes from another version: {error}. Train again."
        ) from error


def load_model(
    task: GridTask[Any, Any], path: Path, *, device: str = "auto", solver: str | None = None
) -> tuple[GridModel, GridConfig]:
    """The averaged model of a checkpoint, ready for evaluation.

    Raises:
        CheckpointError: The file is not a checkpoint of this task and version.
        ValueError: Unknown device or solver.
    """
    checkpoint = Checkpoint.load(path)
    config = read_config(task, checkpoint, path)
    model = config.build()
    load_average(model, checkpoint, path)
    if not isinstance(model, GridTransformer):
        model.solving.solver = config.evaluation_solver(solver)
    return model.to(choose_device(device)).eval(), config


def load_average(model: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Give a model the averaged weights of a checkpoint."""
    average = checkpoint.tensors.get("average", {})
    prefix = "module."
    weights = {k.removeprefix(prefix): v for k, v in average.items() if k.startswith(prefix)}
    load_weights(model, weights, path)


def export(checkpoint: Path, path: Path) -> Path:
    """Write the averaged weights alone: enough for `eval` and `solve`, a tenth of the size."""
    whole = Checkpoint.load(checkpoint)
    average = {k: v for k, v in whole.tensors["average"].items() if k.startswith("module.")}
    Checkpoint({"average": average}, whole.meta | {"history": []}).save(path)
    return path
