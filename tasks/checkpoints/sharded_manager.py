"""The checkpoints of a run as folders of files, written while training goes on; see `sharded`.

A module of its own, since what it imports of torch takes a second, and most runs need none of it.
"""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from tasks.checkpoints import sharded
from tasks.checkpoints.checkpoint import FOLDER, Checkpoint
from tasks.checkpoints.file import discard, flattened, link, rotate
from tasks.checkpoints.manager import FAILURES, CheckpointManager, unfinished
from tasks.distributed import PATIENCE, Group


class ShardedCheckpointManager(CheckpointManager):
    """A `CheckpointManager` whose checkpoints are folders: each process writes its own share.

    `save` returns when the state is copied to the CPU, and the next `save` waits until it is
    written. Meanwhile processes meet in a group of their own, apart from that of training. All
    must see one file system.
    """

    name = FOLDER

    def __init__(self, folder: Path, group: Group, keep_last: int = 2):
        super().__init__(folder, group, keep_last)
        self.temporary = unfinished(self.newest)
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
        written = async_save(  # every process must call it
            flattened(tensors),
            storage_writer=HuggingFaceStorageWriter(str(self.temporary), save_distributed=True),
            async_stager=_Copies(self.mesh),
            process_group=self.writers,
            no_dist=self.writers is None,
        )
        assert isinstance(written, Future)
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
            twin = unfinished(self.best)
            shutil.rmtree(twin, ignore_errors=True)
            twin.mkdir()
            for name in (*sums, sharded.MANIFEST):  # last what makes it complete
                link(self.temporary / name, twin / name)
            discard(self.best)
            twin.rename(self.best)
        rotate([self.newest, *self.older])
        self.temporary.rename(self.newest)


class _Copies(BlockingAsyncStager):
    """Copies the state to the CPU, so that training can continue during the write.

    torch's own stagers fail on the shards of FSDP.
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
