"""Build what a configuration asks for within the bounds that the weights beside it set.

Whoever wrote a file chose its configuration as well, and a few bytes there can ask for any number
of weights. A model that needs more than its file holds is refused before they are allocated.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from tasks.checkpoints.file import CheckpointError, refusing

# What a model may have besides the weights in a file, such as masks.
MORE_NUMBERS, MORE_PARAMETERS = 2**22, 16
SIZED = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)


@contextlib.contextmanager
def bounded_by(weights: Mapping[str, Tensor], config: Any, source: Any) -> Iterator[None]:
    """Refuse to build a model that has more weights than a file.

    Args:
        weights: The weights in the file.
        config: The options in the file, which have a section `model`.
        source: The file, for messages.

    Raises:
        CheckpointError: The model has more weights, or cannot be built at all.
    """
    numbers = sum(tensor.nbytes for tensor in weights.values()) // torch.float32.itemsize
    for field in dataclasses.fields(config.model):
        value = getattr(config.model, field.name)
        if isinstance(value, int) and value > max(numbers, 1000):
            raise CheckpointError(
                f"{source} does not fit its configuration: it has {numbers:,} weights, which "
                f"`{field.name}` = {value:,} exceeds. Use another file, or train again."
            )
    left = len(weights) + MORE_PARAMETERS

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _TooMany(f"it needs more than the {len(weights):,} weight tensors in the file")

    hook = register_module_parameter_registration_hook(count)
    try:
        with refusing(source, "does not fit its configuration"), _Budget(numbers):
            yield
    finally:
        hook.remove()


class _TooMany(ValueError):
    """A model has more weights than the file that it comes from."""


class _Budget(TorchFunctionMode):
    """Raises before a tensor is made that the numbers in a file could not fill.

    Args:
        numbers: How many there are.
    """

    def __init__(self, numbers: int):
        super().__init__()
        self.numbers, self.left = numbers, numbers + MORE_NUMBERS

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        wanted = 0
        if func in SIZED:
            size = kwargs.get("size", args[0] if len(args) == 1 else args)
            wanted = math.prod(size) if isinstance(size, Sequence) else size
        elif func is torch.stack and args:
            wanted = sum(part.numel() for part in args[0])
        self.left -= wanted
        if self.left < 0:
            raise _TooMany(
                f"it needs a tensor of {wanted:,} numbers, of which the file has {self.numbers:,}"
            )
        return func(*args, **kwargs)
