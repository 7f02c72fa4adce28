"""Checkpoints of many files: each process writes its own share, while training goes on.

A checkpoint is a folder: safetensors files, written by torch.distributed.checkpoint, and a manifest
with their checksums and the run's meta data. It is complete before it gets its name, and any
number of processes can read it. Nothing in it is ever unpickled: torch's own format keeps its index
in a pickle, and is therefore not used; a file of that kind in the folder is left unread.
"""

import contextlib
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from tasks.checkpoints.file import (
    Checkpoint,
    CheckpointError,
    flattened,
    grouped,
    hardlink,
    rotate,
    to_disk,
)
from tasks.checkpoints.manager import FOLDER, CheckpointManager
from tasks.distributed import PATIENCE, Group

MANIFEST, FORMAT = "manifest.json", "attractor-models-sharded-1"
# A write that fails in one of these ways may succeed later.
FAILURES = (OSError, SafetensorError)


def read(folder: Path) -> Checkpoint:
    """Read what `ShardedCheckpointManager` wrote, in one piece, whatever the number of processes.

    Raises:
        CheckpointError: A file is missing, unknown, damaged, or something else.
    """
    meta, sums = _manifest(folder)
    found = {path.name for path in folder.glob("*.safetensors")}
    if found != set(sums):
        odd = ", ".join(sorted(found ^ set(sums)))
        raise CheckpointError(
            f"{folder} is damaged: {odd} should be there and is not, or the other way round. Use "
            "an earlier checkpoint, or train again."
        )
    for name, expected in sums.items():
        if _sum(folder / name) != expected:
            raise CheckpointError(
                f"{folder / name} is damaged: its content does not have the checksum that it was "
                "written with. Use an earlier checkpoint, or train again."
            )
    return Checkpoint(grouped(_assembled(folder)), meta)


def _assembled(folder: Path) -> dict[str, Tensor]:
    _be_quiet_about_one_process()
    reader = HuggingFaceStorageReader(str(folder))
    try:
        flat = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in cast(Any, reader.read_metadata().state_dict_metadata).items()
        }
        load(flat, storage_reader=reader, no_dist=True)
    except (SafetensorError, CheckpointException) as error:
        raise CheckpointError(
            f"{folder} is not a readable checkpoint ({error}). Use an earlier one, or train again."
        ) from error
    return flat


class ShardedCheckpointManager(CheckpointManager):
    """As `CheckpointManager`, for folders; every process must have one, and ask for the same.

    `save` returns when the state is copied to the CPU, and the next one waits for it to be
    written. Processes meet in a group of their own meanwhile, apart from those of training.
    All see one file system.

    Args:
        folder: Where the checkpoints are.
        group: The processes.
        keep_last: See `CheckpointManager`.
    """

    def __init__(self, folder: Path, group: Group, keep_last: int = 2):
        super().__init__(folder, FOLDER, keep_last)
        self.temporary = folder / (FOLDER + ".tmp")
        self.group = group
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.pending: Future[OSError | None] | None = None
        self.saving: int | None = None
        _be_quiet_about_one_process()
        self.writers: ProcessGroup | None = None
        self.mesh: DeviceMesh | None = None
        if group.size > 1:
            self.writers = cast(ProcessGroup, distributed.new_group(None, PATIENCE, "gloo"))
            self.mesh = init_device_mesh("cpu", (group.size,))

    def rows(self, share: Tensor) -> Tensor:
        """This process's rows of a tensor that all have an equal share of, in their order."""
        if self.mesh is None:
            return share
        return DTensor.from_local(share.cpu(), self.mesh, [Shard(0)], run_check=False)

    def save(self, checkpoint: Checkpoint, best: bool = False) -> None:
        """Begin to write the newest, which is also the best one so far if `best`."""
        self.finish()
        step = checkpoint.meta["step"]
        # Whether the last attempt left something is for one process to see and to remove.
        failure = self._clear() if self.group.first else None
        if (failure := self.group.of_first(failure)) is not None:
            self._note(step, failure)
            return
        tensors = checkpoint.tensors
        if not self.group.first:  # of what each has a state of its own, the first one's counts
            tensors = {name: part for name, part in tensors.items() if name != "random"}
        writer = HuggingFaceStorageWriter(str(self.temporary), save_distributed=True)
        written = async_save(
            flattened(tensors),
            storage_writer=writer,
            async_stager=_Copies(self.mesh),
            process_group=self.writers,
            no_dist=self.writers is None,
        )
        assert isinstance(written, Future)
        self.saving = step
        self.pending = self.thread.submit(self._complete, written, checkpoint.meta, best)

    def finish(self) -> None:
        """Wait for the last `save`, and note how it went; every process must."""
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
        """Once all files are there: sums, the manifest, the name. In a thread of its own."""
        failure = self._attempt(lambda: written.result())
        if failure is not None:  # in all processes alike
            return failure
        names = sorted(path.name for path in self.temporary.glob("*.safetensors"))
        ours: dict[str, str] = {}

        def add_up() -> None:
            ours.update(
                {n: _sum(self.temporary / n) for n in names[self.group.rank :: self.group.size]}
            )

        parts = self._of_all((self._attempt(add_up), ours))
        failure = next((error for error, _ in parts if error is not None), None)
        if failure is None and self.group.first:
            sums = {name: value for _, part in parts for name, value in part.items()}
            failure = self._attempt(lambda: self._publish(meta, sums, best))
        return self._of_all(failure)[0]

    def _of_all(self, value: Any) -> list[Any]:
        if self.writers is None:
            return [value]
        box = [None] * self.group.size
        distributed.all_gather_object(box, value, group=self.writers)
        return box

    def _attempt(self, action: Callable[[], object]) -> OSError | None:
        """What is wrong with the disk, if anything is; other errors are raised."""
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
        """Between two of these steps the one before may be the newest: `load_newest` takes it."""
        _write_manifest(self.temporary, meta, sums)
        rotate([self.newest, *self.older])
        self.temporary.rename(self.newest)
        if best:
            twin = self.best.with_name(self.best.name + ".tmp")
            _remove(twin)
            twin.mkdir()
            for path in self.newest.iterdir():
                hardlink(path, twin / path.name)
            _remove(self.best)
            twin.rename(self.best)


class _Copies(BlockingAsyncStager):
    """Copies on the CPU, so that training may go on; torch's own stagers fail on FSDP's shares.

    Args:
        mesh: The processes, on their CPUs; None for one.
    """

    def __init__(self, mesh: DeviceMesh | None):
        super().__init__()
        self.mesh = mesh

    def stage(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `AsyncStager`."""
        return {name: self._copy(tensor) for name, tensor in state_dict.items()}

    def _copy(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor.to("cpu", copy=True).contiguous()
        assert self.mesh is not None
        share = tensor.to_local().to("cpu", copy=True).contiguous()
        return DTensor.from_local(
            share, self.mesh, tensor.placements,
            run_check=False, shape=tensor.shape, stride=tensor.stride(),
        )  # fmt: skip


def _be_quiet_about_one_process() -> None:
    """It is what `no_dist` asks for; the warning comes from a thread, out of reach of a context."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninit")


def _write_manifest(folder: Path, meta: dict[str, Any], sums: dict[str, str]) -> None:
    content = {"format": FORMAT, "meta": json.dumps(meta), "files": sums}
    path = folder / MANIFEST
    path.write_text(json.dumps({**content, "sha256": _sum_of(content)}))
    to_disk(path)


def _manifest(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Meta data, and the checksum of each file."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
        expected = content.pop("sha256")
        form = content["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} is not a readable checkpoint: its {MANIFEST} is missing or damaged "
            f"({error}). Use an earlier one, or train again."
        ) from error
    if form != FORMAT:
        raise CheckpointError(f"{path} has the format {form!r}, expected {FORMAT!r}.")
    if _sum_of(content) != expected:
        raise CheckpointError(
            f"{path} is damaged: its content does not have the checksum that it was written with. "
            "Use an earlier checkpoint, or train again."
        )
    return json.loads(content["meta"]), content["files"]


def _sum_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
