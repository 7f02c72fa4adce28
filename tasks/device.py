"""Choosing the device that a command runs on, and what that device is good at."""

import os
import platform
import shutil
import sys
from contextlib import AbstractContextManager

import torch
from torch import nn

from models.blocks import Block, PreNormBlock

try:
    import resource
except ImportError:  # a system that does not count so
    resource = None


def choose_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device that exists.

    Raises:
        ValueError: Not a device, or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"The device must be auto, cpu, cuda or cuda:N, got {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"There is no device {str(name)!r}: this machine has {torch.cuda.device_count()} CUDA "
            "devices. Use 'auto' or 'cpu'."
        )
    return device


def kept_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Restore torch's random state, on the CPU and this device, at the end of the block."""
    if device.type == "cpu":
        return torch.random.fork_rng([])
    return torch.random.fork_rng([device], device_type=device.type)


def peak_memory(device: torch.device) -> dict[str, float]:
    """`memory_gb`: the most memory in use so far, in GB of 10^9 bytes; empty where unknown.

    On a CUDA device that is torch's tensors, and on the CPU the whole process, libraries included.
    """
    if device.type == "cuda":
        return {"memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    if resource is None:
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"memory_gb": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9}


def keep_freed_memory() -> None:
    """Let the C library keep up to 64 MB that were freed, for the next tensors.

    glibc returns memory at the end of its heap to the system, which maps and clears it anew: in
    every step of a small model on a CPU, for up to 5 % of its time. glibc does so no more below
    twice the size of the largest block that was mapped by itself and freed, up to one of 32 MB; see
    M_MMAP_THRESHOLD in `man mallopt`. The block here is never touched, and so takes no memory.
    """
    bytes(31 * 2**20)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 may gain time: an x86 CPU without AVX512 has no instructions for it."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    return device.type != "cpu" or not x86 or "512" in torch.backends.cpu.get_cpu_capability()


def compile_blocks(model: nn.Module) -> None:
    """Let torch.compile fuse each block's operations, from the first call on.

    Raises:
        ValueError: The CPU has no C++ compiler to do it with.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "cl"))):
        raise ValueError(
            "`--compile` needs a C++ compiler on the CPU: install g++, or leave it off."
        )
    for module in model.modules():
        if isinstance(module, Block | PreNormBlock):
            module.compile()
