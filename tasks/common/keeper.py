"""Which checkpoints a run keeps, and what becomes of it when one cannot be written or read."""

import contextlib
import os
import warnings
from pathlib import Path

from tasks.common.checkpoint import Checkpoint, CheckpointError, keep_as

NAME = "checkpoint.safetensors"
PREVIOUS = "checkpoint-previous.safetensors"
BEST = "checkpoint-best.safetensors"
REFUSED = "checkpoint-refused.safetensors"


class NotSaved(OSError):
    """A run came to its end, but its last state is on no disk."""


class Keeper:
    """The checkpoints of one run: the newest, the one before, and the best.

    A failed write costs a warning, and the older files stay; the next save tries again.

    Args:
        folder: Where they are.

    Attributes:
        step: The one that was written last; None before the first.
        failure: Why the last write failed; None if it did not.
    """

    def __init__(self, folder: Path):
        self.newest, self.previous, self.best = folder / NAME, folder / PREVIOUS, folder / BEST
        self.step: int | None = None
        self.failure: OSError | None = None

    def save(self, checkpoint: Checkpoint, best: bool = False) -> None:
        """Write the newest, which is also the best one so far if `best`."""
        try:
            checkpoint.save(self.newest, self.previous)
            if best:
                keep_as(self.newest, self.best)
        except OSError as error:
            self.failure = error
            warnings.warn(
                f"Step {checkpoint.meta['step']} is not saved: {error}. Training goes on and will "
                "try again; free space, or make the folder writable.",
                stacklevel=3,
            )
        else:
            self.step, self.failure = checkpoint.meta["step"], None

    def require_saved(self) -> None:
        """Raise `NotSaved` if the last save failed."""
        if self.failure is None:
            return
        left = "There is no checkpoint to go on from."
        if self.newest.is_file():
            step = Checkpoint.load(self.newest).meta["step"]
            left = f"{self.newest} is intact, of step {step}: go on from it with `--resume`."
        raise NotSaved(f"The last state of this run is lost: {self.failure}. {left}")


def load_newest(path: Path) -> Checkpoint:
    """A run's checkpoint; if it is damaged, the one before, with a warning.

    The damaged file is renamed, so that the next save does not take it for the one before.

    Raises:
        CheckpointError: Neither can be used, or `path` is no run's newest checkpoint.
    """
    try:
        return Checkpoint.load(path)
    except CheckpointError as error:
        previous = path.with_name(PREVIOUS)
        if path.name != NAME or not previous.is_file():
            raise
        checkpoint = Checkpoint.load(previous)
        refused = path.with_name(REFUSED)
        with contextlib.suppress(OSError):
            os.replace(path, refused)
        warnings.warn(
            f"Refused: {error} Going on from {previous}, of step {checkpoint.meta['step']}. The "
            f"refused file is now {refused}.",
            stacklevel=2,
        )
        return checkpoint
