"""Which checkpoints a run keeps, and what becomes of it when one cannot be written or read."""

import contextlib
import os
import shutil
import warnings
from pathlib import Path

from tasks.checkpoints.file import Checkpoint, CheckpointError, hardlink

# The newest checkpoint, as one file or as a folder of files.
NAME, FOLDER = "checkpoint.safetensors", "checkpoint"
PREVIOUS = "checkpoint-previous.safetensors"
BEST = "checkpoint-best.safetensors"
REFUSED = "checkpoint-refused.safetensors"


class NotSaved(OSError):
    """A run came to its end, but its last state is on no disk."""


class CheckpointManager:
    """The checkpoints of one run: the newest ones, and the best.

    A failed write costs a warning, and the older files stay; the next save tries again.

    Args:
        folder: Where they are.
        name: Of the newest; the others are named after it.
        keep_last: How many of the newest stay, at least 2.

    Attributes:
        older: Names of those before the newest, from the last one back.
        step: The one that was written last; None before the first.
        failure: Why the last write failed; None if it did not.
    """

    def __init__(self, folder: Path, name: str = NAME, keep_last: int = 2):
        self.newest = folder / name
        self.best = beside(self.newest, BEST)
        self.older = [before(self.newest, age) for age in range(1, keep_last)]
        self.step: int | None = None
        self.failure: OSError | None = None

    def save(self, checkpoint: Checkpoint, best: bool = False) -> None:
        """Write the newest, which is also the best one so far if `best`."""
        try:
            checkpoint.save(self.newest, self.older)
            if best:
                hardlink(self.newest, self.best)
        except OSError as error:
            self._note(checkpoint.meta["step"], error)
        else:
            self._note(checkpoint.meta["step"], None)

    def finish(self) -> None:
        """Wait for what `save` began: here, nothing."""

    def _note(self, step: int, failure: OSError | None) -> None:
        self.failure = failure
        if failure is None:
            self.step = step
            return
        warnings.warn(
            f"Step {step} is not saved: {failure}. Training goes on and will try again; free "
            "space, or make the folder writable.",
            stacklevel=4,
        )

    def require_saved(self) -> None:
        """Raise `NotSaved` if the last save failed."""
        if self.failure is None:
            return
        left = "There is no checkpoint to go on from."
        if self.newest.exists():
            step = Checkpoint.load(self.newest).meta["step"]
            left = f"{self.newest} is intact, of step {step}: go on from it with `--resume`."
        raise NotSaved(f"The last state of this run is lost: {self.failure}. {left}")


def beside(newest: Path, like: str) -> Path:
    """The path of another checkpoint of a run, in the form that its newest one has."""
    return newest.with_name(Path(like).stem + newest.suffix)


def before(newest: Path, age: int) -> Path:
    """The path of the checkpoint that was the newest so many saves ago, at least one."""
    previous = beside(newest, PREVIOUS)
    return previous if age == 1 else previous.with_stem(f"{previous.stem}-{age}")


def load_newest(path: Path) -> Checkpoint:
    """A run's checkpoint; if it is damaged, the newest before it that is not, with a warning.

    What is damaged is renamed, so that the next save does not take it for the one before. A folder
    may also be missing: a process was killed just before the new one got its name.

    Raises:
        CheckpointError: None can be used, or `path` is no run's newest checkpoint.
    """
    try:
        return Checkpoint.load(path)
    except CheckpointError as error:
        if path.name not in (NAME, FOLDER):
            raise
        previous, checkpoint = _newest_intact(path, error)
        refused, moved = beside(path, REFUSED), ""
        with contextlib.suppress(OSError):
            if path.is_dir():
                shutil.rmtree(refused, ignore_errors=True)
            os.replace(path, refused)
            moved = f" What was refused is now {refused}."
        warnings.warn(
            f"Refused: {error} Going on from {previous}, of step {checkpoint.meta['step']}.{moved}",
            stacklevel=2,
        )
        return checkpoint


def _newest_intact(path: Path, refused: CheckpointError) -> tuple[Path, Checkpoint]:
    """The newest one before `path` that can be read; what `path` was refused for if none can."""
    found = path.parent.glob(Path(PREVIOUS).stem + "*")
    alike = [older for older in found if older.suffix == path.suffix]
    # By age: no number, then -2, ... -9, -10.
    for older in sorted(alike, key=lambda older: (len(older.name), older.name)):
        try:
            return older, Checkpoint.load(older)
        except CheckpointError as error:
            refused = error
    raise refused
