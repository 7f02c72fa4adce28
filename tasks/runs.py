"""Run folders: a new one, the newest one, and the weights in one."""

import contextlib
import itertools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from solvers.registry import UnknownName
from tasks.checkpoints.bounds import bounded_by
from tasks.checkpoints.checkpoint import Checkpoint, load_weights
from tasks.checkpoints.file import CheckpointError
from tasks.checkpoints.manager import BEST, FOLDER, NAME, PREVIOUS, sweep
from tasks.folders import FolderInUse, FolderLock

RUNS = Path("runs")


def program(task: Any) -> str:
    """The command that users type, without its arguments: the package of the task's class."""
    return f"python -m {type(task).__module__.rpartition('.')[0]}"


def lock_folder(folder: Path) -> FolderLock:
    """Keep a folder for a run of this process, and tidy up after one that was killed in it.

    Args:
        folder: It is created if need be.

    Raises:
        FolderInUse: Another process has a run in it.
        ValueError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"The output folder {folder} cannot be written ({error.strerror}). Name another "
            "with `--out`, or go on with a run in a copy of its folder."
        ) from error
    if lock.held:
        sweep(folder)
    else:
        warnings.warn(
            f"The file system of {folder} cannot lock files, and a second run in this folder would "
            "go unnoticed: make sure that there is none.",
            stacklevel=2,
        )
    return lock


def new_folder(wanted: Path | None, task: str, name: str) -> FolderLock:
    """Create and lock the folder of a run; never one that holds a checkpoint already.

    Raises:
        FolderInUse: Another process has a run in the named folder, or it holds a run.
        ValueError: The named folder cannot be written.
    """
    if wanted is not None:
        return _lock_new(wanted)
    for number in itertools.count(1):
        folder = RUNS / task / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FolderInUse):
            return _lock_new(folder)
    raise AssertionError("unreachable")


def _lock_new(folder: Path) -> FolderLock:
    """Create and lock a folder without a checkpoint; see `new_folder`."""
    held = checkpoint_in(folder)
    if held is None:
        lock = lock_folder(folder)
        # Meanwhile, another run may have ended there.
        if (held := checkpoint_in(folder)) is None:
            return lock
        lock.release()
    raise FolderInUse(
        f"{folder} already holds a run. Go on with it by `--resume {held}`, or name another "
        "folder with `--out`."
    )


def checkpoint_in(folder: Path) -> Path | None:
    """What a run in a folder can go on from: the newest checkpoint, or the next best one.

    The newest one may be missing where a process was killed, or where it was damaged.
    """
    names = (NAME, FOLDER, PREVIOUS, BEST)
    suffix = Path(NAME).suffix
    paths = (folder / each for name in names for each in (name, name + suffix))
    return next((path for path in paths if path.exists()), None)


def lock_resumed(path: Path) -> FolderLock | None:
    """Lock the folder of a checkpoint that a run will go on from; None if there is no such run.

    Raises:
        FolderInUse: Another process trains in that folder.
        ValueError: It cannot be written, or `path` is the folder of a run itself.
    """
    if path.is_dir() and (inside := checkpoint_in(path)) is not None:
        raise ValueError(f"{path} is the folder of a run. Go on with it by `--resume {inside}`.")
    if not path.exists() and checkpoint_in(path.parent) is None:
        return None
    return lock_folder(path.parent)


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
        f"No checkpoint {what} under {folder}. Train one with `{program(task)}`, or name "
        "one with `--checkpoint`."
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
