"""Peak memory in live tensors, counted exactly: no allocator, no operating system."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class PeakMemory(TorchDispatchMode):
    """Follow every storage that an operation returns until it is freed; `peak` is in bytes.

    Args:
        known: Tensors that do not count, though operations return views of them.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.known = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in known}
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and look at what is alive."""
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self.known:
                    self.live[reference.cdata] = (reference, storage.nbytes())
        self.live = {k: (r, size) for k, (r, size) in self.live.items() if not r.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out

    @property
    def now(self) -> int:
        """Bytes that are alive."""
        return sum(size for reference, size in self.live.values() if not reference.expired())
