"""Peak memory in live tensors, counted exactly: no allocator, no operating system."""

from typing import Any

import torch

from tasks.planning.peak_memory import PeakMemory


def peak_of(call: Any) -> int:
    """Bytes of the tensors made by `call` that were alive at the worst moment."""
    with PeakMemory() as memory, torch.enable_grad():
        call()
    return memory.peak
