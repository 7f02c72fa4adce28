"""Parts of a batch side by side on a CPU, each in a thread of its own.

Torch shares the work of one operation among its threads, which pays where operations are large. In
small models most of them are too small for that, while the samples of a batch need nothing from
one another: a thread that computes its own samples waits for the others once per batch.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from solvers.torch_internals import has_compiled_part, has_hooks
from tasks.device import kept_random_state

Part = TypeVar("Part")
Result = TypeVar("Result")

# Of a part, at least: with fewer, starting an operation takes longer than computing it.
LEAST_ROWS = 4


def count_parts(model: nn.Module, x: Tensor) -> int:
    """The number of parts in which a batch is best computed side by side.

    It is 1 on a GPU; for compiled blocks, whose kernels have their number of threads in them; for a
    model with forward hooks, which watch one pass after the other; and for one that draws random
    numbers, which would depend on which thread comes first.

    Args:
        model: Called as model(x, max_steps=), in the mode in which it will be used.
        x: The batch, shape (rows, ...); one row is tried.
    """
    if x.device.type != "cpu":
        return 1
    count = max(1, min(torch.get_num_threads(), len(x) // LEAST_ROWS))
    if count == 1 or has_compiled_part(model) or has_hooks(model) or _draws(model, x[:1]):
        return 1
    return count


def side_by_side(
    function: Callable[[Part], Result], parts: Sequence[Part], count: int
) -> list[Result]:
    """Call a function for each part, `count` of them at a time; the results, in their order.

    Each thread has the caller's gradient mode, and its share of the caller's threads for the
    operations of torch. An error of any part is raised here.
    """
    if count == 1:
        return [function(part) for part in parts]
    enabled = torch.is_grad_enabled()

    def call(part: Part) -> Result:
        with torch.set_grad_enabled(enabled):
            return function(part)

    return list(_pool(count, max(1, torch.get_num_threads() // count)).map(call, parts))


@functools.cache
def _pool(count: int, share: int) -> ThreadPoolExecutor:
    # Torch counts the threads of its operations for each thread apart.
    return ThreadPoolExecutor(count, "part", torch.set_num_threads, (share,))


def _draws(model: Callable[..., Any], x: Tensor) -> bool:
    with kept_random_state(x.device), torch.no_grad():
        before = torch.get_rng_state()
        model(x, max_steps=1)
        return not torch.equal(before, torch.get_rng_state())
