"""The folder of a run: locked for one process, and never one that holds a run already."""

import contextlib
import itertools
import tempfile
import warnings
from pathlib import Path

from tasks.checkpoints.checkpoint import BEST, FOLDER, NAME, PREVIOUS
from tasks.checkpoints.file import require_safetensors
from tasks.checkpoints.manager import sweep
from tasks.folders import FolderInUse, FolderLock
from tasks.runs import RUNS


def lock_folder(folder: Path) -> FolderLock:
    """Make and keep a folder for a run of this process; tidy up after one that was killed in it.

    Raises:
        FolderInUse: Another process has a run in it.
        ValueError: It cannot be written.
    """
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder, made)
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
        ValueError: It cannot be written, or `path` is the folder of a run itself, or no checkpoint.
    """
    if path.is_dir() and (inside := checkpoint_in(path)) is not None:
        raise ValueError(f"{path} is the folder of a run. Go on with it by `--resume {inside}`.")
    if not path.exists() and checkpoint_in(path.parent) is None:
        return None
    if path.is_file() and checkpoint_in(path.parent) is None:
        require_safetensors(path)  # or the folder of some other file would get the file of a lock
    return lock_folder(path.parent)
