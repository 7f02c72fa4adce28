"""Which checkpoints a run keeps, and what happens if one cannot be written or read."""

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from tasks import folders
from tasks.checkpoints import sharded
from tasks.checkpoints.checkpoint import BEST, FOLDER, NAME, PREVIOUS, REFUSED, Checkpoint
from tasks.checkpoints.file import OLD, CheckpointError
from tasks.distributed import Group, full_tensor

# A write that fails in one of these ways may succeed later.
FAILURES = (OSError, SafetensorError)


class NotSaved(OSError):
    """A run ended, but its last state could not be saved."""


class CheckpointManager:
    """The checkpoints of one run, each of them one file: the newest ones, and the best.

    Every process must have a manager and call the same methods; the first one writes. A failed
    write costs a warning, and the older files stay; the next save tries again.

    Args:
        folder: Where they are.
        group: The processes that train together.
        keep_last: How many of the newest stay, at least 2.

    Attributes:
        newest: Path of the newest one.
        best: Path of the best one.
        older: Paths of those before the newest, the most recent one first.
        step: The one that was written last; None before the first.
        failure: Why the last write failed; None if it did not.
    """

    name = NAME

    def __init__(self, folder: Path, group: Group, keep_last: int = 2):
        self.group = group
        self.newest = folder / self.name
        self.best = self.newest.with_stem(BEST)
        self.older = [before(self.newest, age) for age in range(1, keep_last)]
        self.step: int | None = None
        self.failure: OSError | None = None

    def collect(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a checkpoint holds of tensors of which this process may have a shard only."""
        return {name: full_tensor(tensor).detach().cpu() for name, tensor in tensors.items()}

    def collect_rows(self, rows: Tensor) -> Tensor:
        """What a checkpoint holds of the rows of a batch, an equal share of each process."""
        return self.group.all_gather(rows)

    def save(self, checkpoint: Checkpoint, best: bool = False) -> None:
        """Write the newest, which is also the best one so far if `best`."""
        if not self.group.first:
            return
        try:
            checkpoint.save(self.newest, self.older, self.best if best else None)
        except OSError as error:
            self._note(checkpoint.meta["step"], error)
        else:
            self._note(checkpoint.meta["step"], None)

    def finish(self) -> None:
        """Wait until what `save` began is written; a single file is written at once."""

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
        left = "".join(_intact(self.newest.parent)) or " There is no checkpoint to go on from."
        raise NotSaved(f"The last state of this run is lost: {self.failure}.{left}")


def unfinished(path: Path) -> Path:
    """The name that a folder has until it is complete and takes the name `path`."""
    return path.with_name(path.name + ".tmp")


def sweep(folder: Path) -> None:
    """Remove what a process that was killed left in the folder of its run, or finish it.

    Only for the process that has locked the folder.
    """
    folders.sweep(folder)
    for path in (folder / FOLDER, folder / BEST):
        left = unfinished(path)
        if not path.exists() and sharded.is_complete(left):
            left.rename(path)
        shutil.rmtree(left, ignore_errors=True)  # which leaves a file of that name alone
    for gone in folder.glob(f"{FOLDER}*{OLD}"):
        shutil.rmtree(gone, ignore_errors=True)


def before(newest: Path, age: int) -> Path:
    """The path of the checkpoint that was the newest `age` saves ago, for `age` of at least 1."""
    return newest.with_stem(PREVIOUS if age == 1 else f"{PREVIOUS}-{age}")


def load_newest(path: Path) -> Checkpoint:
    """Load the newest checkpoint of a run or, with a warning, the newest one that is intact.

    A damaged checkpoint is renamed, so that the next save does not keep it as the previous one. One
    without the right to read it is an error: nothing says that it is damaged. A folder may also be
    missing, if a process was killed just before the folder got its name.

    Raises:
        CheckpointError: None is intact, or `path` does not have the name of a newest checkpoint,
            or it has the weights alone, or may not be read.
    """
    try:
        return _whole(path)
    except CheckpointError as error:
        if path.name not in (NAME, FOLDER) or isinstance(error.__cause__, PermissionError):
            raise
        previous, checkpoint = _newest_intact(path, error)
        refused, moved = path.with_stem(REFUSED), ""
        with contextlib.suppress(OSError):
            if path.is_dir():
                shutil.rmtree(refused, ignore_errors=True)
            os.replace(path, refused)
            moved = f" What was refused is now {refused}."
        step = checkpoint.value("step")
        warnings.warn(
            f"Refused: {error} Going on from {previous}, of step {step}.{moved}", stacklevel=2
        )
        return checkpoint


def _whole(path: Path) -> Checkpoint:
    """Load a checkpoint that has all that training needs to go on.

    Raises:
        CheckpointError: It is not intact, or it has the averaged weights alone.
    """
    checkpoint = Checkpoint.load(path)
    if "model" not in checkpoint.tensors:
        raise CheckpointError(
            f"{path} has the averaged weights alone, without what training needs to go on. "
            "Commands that evaluate or use the model take it as `--checkpoint`; `--resume` needs "
            f"{NAME} or {FOLDER} from the folder of the run."
        )
    return checkpoint


def _newest_intact(path: Path, refused: CheckpointError) -> tuple[Path, Checkpoint]:
    """The newest intact checkpoint before `path`.

    Raises:
        CheckpointError: There is none; the message names others that are intact.
    """
    found = path.parent.glob(f"{PREVIOUS}*")
    alike = [older for older in found if older.suffix == path.suffix]
    # By age: no number, then -2, ... -9, -10.
    for older in sorted(alike, key=lambda older: (len(older.name), older.name)):
        try:
            return older, _whole(older)
        except CheckpointError as error:
            refused = error
    if others := "".join(_intact(path.parent)):
        raise CheckpointError(f"{refused}{others}") from refused
    raise refused


def _intact(folder: Path) -> Iterator[str]:
    """A sentence about each intact checkpoint in a folder, whatever its form and its name."""
    for path in sorted(folder.glob("checkpoint*")):
        with contextlib.suppress(CheckpointError):
            step = _whole(path).meta.get("step")
            yield f" {path} is intact, of step {step}: go on from it with `--resume {path}`."
