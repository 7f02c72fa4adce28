"""Training on several processes, as `torchrun` starts them, each with a share of every batch.

Processes communicate when a step begins (FSDP2 gathers weights), in its backward pass (gradients
are averaged) and at its end (log and clock), but never inside a solve, forward or adjoint: each
process calls the refiner as often as its own samples need, so that a process that waited for the
others there would wait for ever.
"""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from models import modules_used_once
from models.blocks import Block, PreNormBlock

Kind = Literal["ddp", "fsdp"]
T = TypeVar("T")
# How long a process waits for another one before it gives up.
PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class Group:
    """The processes that train together, as one of them sees them.

    Attributes:
        rank: The number of this process, from 0.
        size: How many processes there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Group":
        """The group that `init` joined; otherwise a group of this process alone."""
        if not distributed.is_initialized():
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints, logs and saves."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's share of `count` rows."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def all_gather(self, share: Tensor) -> Tensor:
        """The shares of all processes, concatenated along the first dim in order of rank."""
        if self.size == 1:
            return share
        parts = [torch.empty_like(share) for _ in range(self.size)]
        distributed.all_gather(parts, share.contiguous())
        return torch.cat(parts)

    def gather(self, value: Any) -> list[Any]:
        """What each process passed, in order of rank, in every process; tensors on a CPU."""
        if self.size == 1:
            return [value]
        found = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def in_turn(self, call: Callable[[], T]) -> T:
        """Call a function in the first process, and in the others once it has returned there."""
        found = [call()] if self.first else []
        self.broadcast(None)
        return found[0] if found else call()

    def broadcast(self, value: Any) -> Any:
        """The value that the first process passed, in every process."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]

    def all_reduce(self, metrics: dict[str, float]) -> dict[str, float]:
        """The mean over processes of each metric; all must pass the same names."""
        if self.size == 1 or not metrics:
            return metrics
        values = torch.tensor(list(metrics.values()), dtype=torch.float64)
        distributed.all_reduce(values)
        return dict(zip(metrics, (values / self.size).tolist(), strict=True))

    def seed_step(self, seed: int, step: int) -> None:
        """Seed the generator so that each process draws noise of its own, the same in a repetition.

        With one process alone, the state of the generator is left as it is.
        """
        if self.size > 1:
            digest = hashlib.sha256(f"{seed} {step} {self.rank}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:7]))


ALONE = Group()


@contextlib.contextmanager
def init() -> Iterator[Group]:
    """Join the processes that `torchrun` started; without `torchrun`, the group is of one process.

    Within the context, only the first process prints and warns.

    Raises:
        ConnectionError: Another process died, or kept this one waiting for longer than PATIENCE.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group(backend, timeout=PATIENCE)
    group = Group.current()
    with contextlib.ExitStack() as stack:
        if not group.first:
            sink = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(sink))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        try:
            yield group
        except RuntimeError as error:
            if not isinstance(error, distributed.DistError) and "gloo" not in str(error).lower():
                raise
            raise ConnectionError(
                f"Process {group.rank} of {group.size} lost another one, whose own message says "
                f"why ({str(error).splitlines()[0]}). Go on from the last checkpoint with "
                "`--resume`."
            ) from error
        finally:
            distributed.destroy_process_group()


def distribute(model: nn.Module, average: nn.Module, kind: Kind, group: Group) -> nn.Module:
    """Let the processes train one model together; return the module to call in its place.

    Args:
        model: Trained, with equal weights in each process; "fsdp" shards it in place.
        average: Another model of the same structure, not trained; likewise.
        kind: "ddp": every process has all weights. "fsdp": each has a share of every weight,
            and of the optimiser's state and the average.
        group: The processes.
    """
    if group.size == 1:
        return model
    if kind == "fsdp":
        # Nobody changes an output in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        _shard(model, group, keep=True)
        _shard(average, group, keep=False)
        return model
    partly = getattr(model, "trains_in_part", False)
    return DistributedDataParallel(model, forward_sync_buffers=False, find_unused_parameters=partly)


def _shard(model: nn.Module, group: Group, keep: bool) -> None:
    """Shard blocks that are used once per pass on their own, and all other weights together.

    The others are gathered when a pass begins. The weights of a map that is solved or looped are
    therefore whole before its first call, and no process waits for another inside a solve.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (group.size,))
    for module in list(modules_used_once(model)):
        if isinstance(module, Block | PreNormBlock):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=not keep)
    for module in model.modules():
        if isinstance(module, FSDPModule) and device == "cpu":
            module.set_force_sum_reduction_for_comms(True)  # gloo does not average


def no_sync(network: nn.Module, enabled: bool = True) -> contextlib.AbstractContextManager[Any]:
    """Within the context, let backward passes add gradients up in each process alone.

    This saves the exchange of gradients, but FSDP then holds gradients of whole weights.

    Args:
        network: What `distribute` returned.
        enabled: If False, backward passes exchange gradients as usual.
    """
    if isinstance(network, DistributedDataParallel) and enabled:
        return network.no_sync()
    if (set_sync := getattr(network, "set_requires_gradient_sync", None)) is not None:  # of FSDP
        set_sync(not enabled)
    return contextlib.nullcontext()


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor in one piece; if it is sharded, every process must call it."""
    # A `DTensor`, whose module takes a second to import.
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore
