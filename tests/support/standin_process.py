"""A process of its own that runs the cases of tests on the stand-in device."""

import atexit
import functools
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

T = TypeVar("T")


def on_standin(case: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call a function of a module in that process, and return what it returns, or raise."""
    try:
        return _process().submit(case, *args, **options).result()
    except BrokenProcessPool:  # torch has crashed: the next case gets another process
        _process.cache_clear()
        raise


@functools.cache
def _process() -> ProcessPoolExecutor:
    # Not a fork, which would have the autograd threads that this process has started.
    context = multiprocessing.get_context("spawn")
    process = ProcessPoolExecutor(1, context, initializer=_begin)
    atexit.register(process.shutdown)
    return process


def _begin() -> None:
    import standin
    import torch

    from solvers.torch_internals import load_forward_mode

    torch.set_num_threads(1)
    standin.register()
    load_forward_mode()
    # As in pytest's own process.
    warnings.simplefilter("error")
