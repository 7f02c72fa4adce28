"""Which checkpoints a run keeps, and what happens if one cannot be written or read."""

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from tasks import folders
from tasks.checkpoints import sharded
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.checkpoints.file import OLD, CheckpointError, discard, link, rotate
from tasks.distributed import PATIENCE, Group, full_tensors

# The newest checkpoint, as one file or as a folder of files.
NAME, FOLDER = "checkpoint.safetensors", "checkpoint"
# Stems of the others, whose suffix is that of the newest.
PREVIOUS, BEST, REFUSED = "checkpoint-previous", "checkpoint-best", "checkpoint-refused"
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
        return full_tensors(tensors)

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


class ShardedCheckpointManager(CheckpointManager):
    """A `CheckpointManager` whose checkpoints are folders: each process writes its own share.

    `save` returns when the state is copied to the CPU, and the next `save` waits until it is
    written. Meanwhile processes meet in a group of their own, apart from that of training. All
    must see one file system.
    """

    name = FOLDER

    def __init__(self, folder: Path, group: Group, keep_last: int = 2):
        super().__init__(folder, group, keep_last)
        self.temporary = _unfinished(self.newest)
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.pending: Future[OSError | None] | None = None
        self.saving: int | None = None
        sharded.ignore_warning_of_one_process()
        self.writers: ProcessGroup | None = None
        self.mesh: DeviceMesh | None = None
        if group.size > 1:
            self.writers = cast(ProcessGroup, distributed.new_group(None, PATIENCE, "gloo"))
            self.mesh = init_device_mesh("cpu", (group.size,))

    def collect(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `CheckpointManager`: here, each process keeps the shards that it has."""
        return dict(tensors)

    def collect_rows(self, rows: Tensor) -> Tensor:
        """See `CheckpointManager`: here, a `DTensor` of which each process has its rows."""
        if self.mesh is None:
            return rows
        return DTensor.from_local(rows.cpu(), self.mesh, [Shard(0)], run_check=False)

    def save(self, checkpoint: Checkpoint, best: bool = False) -> None:
        """Begin to write the newest; see `CheckpointManager`."""
        self.finish()
        step = checkpoint.meta["step"]
        # Whether the last attempt left something is for one process to see and to remove.
        failure = self._clear() if self.group.first else None
        if (failure := self.group.broadcast(failure)) is not None:
            self._note(step, failure)
            return
        tensors = checkpoint.tensors
        if not self.group.first:  # every process has its own generators: the first one's are kept
            tensors = {name: part for name, part in tensors.items() if name != "random"}
        written = sharded.start_writing(self.temporary, tensors, self.mesh, self.writers)
        self.saving = step
        self.pending = self.thread.submit(self._complete, written, checkpoint.meta, best)

    def finish(self) -> None:
        """Wait until the last `save` is written, and note how it went."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        assert self.saving is not None
        self._note(self.saving, pending.result())

    def require_saved(self) -> None:
        """Raise `NotSaved` if the last save failed."""
        self.finish()
        super().require_saved()

    def _clear(self) -> OSError | None:
        try:
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir()
        except OSError as error:
            return error
        return None

    def _complete(self, written: Future[Any], meta: dict[str, Any], best: bool) -> OSError | None:
        """When all files are there, write checksums and the manifest, and give the folder its name.

        Runs in a thread of its own.
        """
        failure = self._attempt(lambda: written.result())
        if failure is not None:  # in all processes alike
            return failure
        names = sorted(path.name for path in self.temporary.glob("*.safetensors"))
        ours: dict[str, str] = {}

        def add_checksums() -> None:
            for name in names[self.group.rank :: self.group.size]:
                ours[name] = sharded.checksum(self.temporary / name)

        parts = self._all_gather((self._attempt(add_checksums), ours))
        failure = next((error for error, _ in parts if error is not None), None)
        if failure is None and self.group.first:
            sums = {name: value for _, part in parts for name, value in part.items()}
            failure = self._attempt(lambda: self._publish(meta, sums, best))
        return self._all_gather(failure)[0]

    def _all_gather(self, value: Any) -> list[Any]:
        if self.writers is None:
            return [value]
        box = [None] * self.group.size
        distributed.all_gather_object(box, value, group=self.writers)
        return box

    def _attempt(self, action: Callable[[], object]) -> OSError | None:
        """Do something; return the error if it is one of the disk, and raise others."""
        try:
            action()
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            if not all(isinstance(cause, FAILURES) for cause in causes):
                raise
            return OSError(f"{self.newest} could not be written ({causes[0]})")
        except FAILURES as error:
            return OSError(f"{self.newest} could not be written ({error})")
        return None

    def _publish(self, meta: dict[str, Any], sums: dict[str, str], best: bool) -> None:
        """Let the folder take the name of the newest.

        Killed in between, a run may be left without a newest or a best one, but then the folder
        that was to take the name is complete: see `sweep`.
        """
        sharded.write_manifest(self.temporary, meta, sums)
        if best:
            twin = _unfinished(self.best)
            shutil.rmtree(twin, ignore_errors=True)
            twin.mkdir()
            for name in (*sums, sharded.MANIFEST):  # last what makes it complete
                link(self.temporary / name, twin / name)
            discard(self.best)
            twin.rename(self.best)
        rotate([self.newest, *self.older])
        self.temporary.rename(self.newest)


MANAGERS = {"file": CheckpointManager, "sharded": ShardedCheckpointManager}


def _unfinished(path: Path) -> Path:
    """The name that a folder has until it is complete and takes the name `path`."""
    return path.with_name(path.name + ".tmp")


def sweep(folder: Path) -> None:
    """Remove what a process that was killed left in the folder of its run, or finish it.

    Only for the process that has locked the folder.
    """
    folders.sweep(folder)
    for path in (folder / FOLDER, folder / BEST):
        left = _unfinished(path)
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
