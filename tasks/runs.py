"""Run folders: a new one, the newest one, and the weights in one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from solvers.registry import UnknownName
from tasks.checkpoints.bounds import bounded_by
from tasks.checkpoints.checkpoint import Checkpoint, load_weights
from tasks.checkpoints.file import CheckpointError
from tasks.checkpoints.manager import FOLDER, NAME, PREVIOUS

RUNS = Path("runs")


def new_folder(wanted: Path | None, task: str, name: str) -> Path:
    """Create the folder of a run; never one that holds a checkpoint already.

    Raises:
        ValueError: The named folder holds a run, or cannot be written.
    """
    folder = wanted or RUNS / task / name
    number = 1
    # A sharded run may lack the newest checkpoint and have the previous one; see `load_newest`.
    names = (NAME, FOLDER, PREVIOUS)
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
    """The most recent checkpoint in `runs/` whose configuration `fits`.

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


def read_config(task: Any, checkpoint: Checkpoint, path: Path) -> Any:
    """The configuration that a checkpoint was trained with.

    Raises:
        CheckpointError: It belongs to another task, or to another version, or names a solver or
            mode that no module has registered.
    """
    trained = checkpoint.meta.get("task")
    if trained != task.name:
        raise CheckpointError(
            f"{path} was trained on {trained!r:.100}, not on {task.name!r}. Name a checkpoint of "
            "this task with `--checkpoint`."
        )
    values = checkpoint.value("config")
    try:
        return task.config_type.from_json(values)
    except UnknownName as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (ImportError, TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise CheckpointError(
            f"{path} comes from another version, or is damaged: {reason}. Train again."
        ) from error


def averaged_model(config: Any, checkpoint: Checkpoint, path: Path) -> Any:
    """The model of a configuration with the averaged weights of a checkpoint.

    Raises:
        CheckpointError: The checkpoint has none, or they are not of such a model.
    """
    weights = averaged_weights(checkpoint)
    with bounded_by(weights, config, path):
        model = config.build()
    load_weights(model, weights, path)
    return model


def averaged_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, by their names in the model."""
    average, prefix = checkpoint.group("average"), "module."
    return {k.removeprefix(prefix): v for k, v in average.items() if k.startswith(prefix)}


def export(checkpoint: Path, path: Path) -> Path:
    """Write the averaged weights alone: a tenth of the size, and enough for `eval` and `solve`."""
    whole = Checkpoint.load(checkpoint)
    average = {k: v for k, v in whole.group("average").items() if k.startswith("module.")}
    Checkpoint({"average": average}, whole.meta | {"history": []}).save(path)
    return path
