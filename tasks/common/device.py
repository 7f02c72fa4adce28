"""The device that a command runs on, and making the most of it."""

import ctypes
import os
import shutil

import torch
from torch import nn

from models.blocks import Block, PreNormBlock

# Parameters of glibc's mallopt, as malloc.h numbers them.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def choose_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device that exists.

    Raises:
        ValueError: Not a device, or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"`--device` must be auto, cpu, cuda or cuda:N, got {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"`--device {name}`: this machine has {torch.cuda.device_count()} CUDA devices. Use "
            "`--device auto`."
        )
    return device


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


def keep_freed_memory() -> None:
    """Let the process keep freed memory for its next tensors, where the C library is glibc.

    As a rule glibc maps a large tensor anew and returns it to the kernel afterwards, which
    then zeroes its pages again: an eighth and more of the time of a training step on Sudoku. The
    peak stays within a few percent. For a whole process, so a program calls it, not a library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 64 << 20)
