"""Peak memory in live tensors, counted exactly: no allocator, no operating system."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from solvers.torch_internals import TorchDispatchMode, pytree


class PeakMemory(TorchDispatchMode):
    """Follow every storage that an operation returns until it is freed; `peak` is in bytes.

    Args:
        known: Tensors that do not count, though operations return views of them.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        # The reference keeps the address from being used again.
        self.known: dict[int, StorageWeakRef] = {}
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        # Of those in `live`, some of which may be gone.
        self.sum = self.peak = 0
        for tensor in known:
            self.forget(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and look at what is alive."""
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self.known:
                    _, before = self.live.get(reference.cdata, (None, 0))
                    self.live[reference.cdata] = (reference, storage.nbytes())
                    self.sum += storage.nbytes() - before
        # Looking at each takes longer than the operation, and only a sum beyond the peak matters.
        if self.sum > self.peak:
            self.peak = max(self.peak, self.now)
        return out

    def forget(self, tensor: Tensor) -> None:
        """Count this tensor's storage no more."""
        reference = StorageWeakRef(tensor.untyped_storage())
        self.known[reference.cdata] = reference
        self.sum -= self.live.pop(reference.cdata, (reference, 0))[1]

    @property
    def now(self) -> int:
        """Bytes that are alive."""
        for key in [key for key, (reference, _) in self.live.items() if reference.expired()]:
            _, size = self.live.pop(key)
            self.sum -= size
        return self.sum
