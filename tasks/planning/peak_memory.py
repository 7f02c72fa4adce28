"""Peak memory in live tensors, counted exactly: no allocator, no operating system."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from solvers.torch_internals import TorchDispatchMode, pytree


class PeakMemory(TorchDispatchMode):
    """Follow every storage that an operation returns until it is freed.

    Args:
        known: Tensors that do not count, though operations return views of them.

    Attributes:
        peak: Most bytes that were alive at one moment.
        peak_without: The same without the tensors that were `set_aside`.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        # The reference keeps the address from being used again.
        self.known: dict[int, StorageWeakRef] = {}
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        # Of those in `live`, some of which may be gone.
        self.sum = self.peak = self.peak_without = 0
        self._aside: set[int] = set()
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
        if self.sum > self.peak or self.sum - self.aside > self.peak_without:
            self.peak = max(self.peak, self.now)
            self.peak_without = max(self.peak_without, self.now - self.aside)
        return out

    def set_aside(self, tensor: Tensor) -> None:
        """Count this tensor's storage in `peak` alone."""
        self._aside.add(StorageWeakRef(tensor.untyped_storage()).cdata)

    def forget(self, tensor: Tensor) -> None:
        """Count this tensor's storage no more."""
        reference = StorageWeakRef(tensor.untyped_storage())
        self.known[reference.cdata] = reference
        self.sum -= self.live.pop(reference.cdata, (reference, 0))[1]

    @property
    def now(self) -> int:
        """Bytes of the tensors that are alive."""
        for key in [key for key, (reference, _) in self.live.items() if reference.expired()]:
            _, size = self.live.pop(key)
            self._aside.discard(key)
            self.sum -= size
        return self.sum

    @property
    def aside(self) -> int:
        """Bytes of the tensors that were set aside and are alive."""
        return sum(self.live[key][1] for key in self._aside if not self.live[key][0].expired())
