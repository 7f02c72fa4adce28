"""What a checkpoint holds, and its way into models and optimisers and out of them."""

import contextlib
import copy
import dataclasses
import math
import reprlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from tasks.checkpoints import file
from tasks.checkpoints.file import CheckpointError, refusing

# The newest checkpoint of a run, as one file or as a folder of files.
NAME, FOLDER = "checkpoint.safetensors", "checkpoint"
# Stems of the others, whose suffix is that of the newest.
PREVIOUS, BEST, REFUSED = "checkpoint-previous", "checkpoint-best", "checkpoint-refused"
# The meta data that every version knows, and their JSON types.
META: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "preset": (str,),
    "tokenizer": (str,),
    "config": (dict,),
    "data": (dict,),
    "step": (int,),
    "seconds": (int, float),
    "history": (list,),
    "unlogged": (list,),
}
JSON_TYPES = {
    str: "text",
    dict: "an object",
    int: "a whole number",
    float: "a number",
    list: "rows",
}
# Names in a message, of many that do not fit.
SHOWN = 3


@dataclass(frozen=True)
class Checkpoint:
    """Everything that is needed to use a model, or to continue its training.

    Attributes:
        tensors: Named groups of tensors, as `model`, `average`, `optimizer`, `random`.
        meta: JSON values: task, config, step, seconds, history.
        path: Where it was read from; None for one that was not.
    """

    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def save(self, path: Path, older: Sequence[Path] = (), best: Path | None = None) -> None:
        """Write the checkpoint as one file; see `file.write`."""
        file.write(path, self.tensors, self.meta, older, best)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read one file, or a folder of sharded files.

        Raises:
            CheckpointError: It is missing, truncated, damaged, or something else.
        """
        if path.is_dir():
            from tasks.checkpoints import sharded

            tensors, meta = sharded.read(path)
        else:
            tensors, meta = file.read(path)
        for name, kinds in META.items():
            if name in meta and not _is_valid(meta[name], kinds):
                raise CheckpointError(
                    f"{path} is damaged: its `{name}` must be {JSON_TYPES[kinds[-1]]}, got "
                    f"{reprlib.repr(meta[name])}. Use an earlier one, or train again."
                )
        return cls(tensors, meta, path)

    def value(self, name: str) -> Any:
        """One of the JSON values, which must be there.

        Raises:
            CheckpointError: It is missing.
        """
        if name not in self.meta:
            raise self._lacks(f"`{name}`")
        return self.meta[name]

    def group(self, name: str) -> dict[str, Tensor]:
        """One of the groups of tensors, which must be there.

        Raises:
            CheckpointError: It is missing.
        """
        if name not in self.tensors:
            raise self._lacks(f"tensors of the group {name!r}")
        return self.tensors[name]

    def _lacks(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} has no {what}. Name a checkpoint of a training run.")


def _is_valid(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a JSON value has one of these types, no number is negative, and rows hold numbers."""
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    if isinstance(value, list):
        return all(
            isinstance(row, dict) and all(isinstance(v, int | float | None) for v in row.values())
            for row in value
        )
    return not isinstance(value, int | float) or 0 <= value < 2**63


def load_weights(
    module: torch.nn.Module, weights: Mapping[str, Tensor], source: Path | None
) -> None:
    """Load a state dict, of which a sharded module takes its share; an error names the file.

    Raises:
        CheckpointError: Names, shapes or types do not fit the module.
    """
    ours = module.state_dict()
    odd = {
        "missing": [name for name in ours if name not in weights],
        "not of this model": [name for name in weights if name not in ours],
        "of another shape or type": [
            f"{name} ({_described(weights[name])} in the file, {_described(tensor)} in the model)"
            for name, tensor in ours.items()
            if name in weights and _described(weights[name]) != _described(tensor)
        ],
    }
    found = "; ".join(f"{problem}: {_first(names)}" for problem, names in odd.items() if names)
    if found:
        from tasks.checkpoints.earlier import changes  # which what fits does without

        if changed := "; and ".join(changes(odd["not of this model"])):
            raise CheckpointError(
                f"The weights in {source} were trained by an earlier version, whose network was "
                f"another one: {changed}. Evaluate them with the version that trained them, or "
                f"train again. {found[0].upper()}{found[1:]}."
            )
        raise CheckpointError(
            f"The weights in {source} do not fit this model: {found}. Use the file that belongs to "
            "this configuration, or train again."
        )
    with refusing(source, "has weights that cannot be loaded"):
        module.load_state_dict({name: shard(weights[name], ours[name]) for name in ours})


def shard(tensor: Tensor, like: Any) -> Tensor:
    """Shard a tensor that is in one piece as another one of its shape is, if that is sharded."""
    if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor  # takes a second to import

    here = tensor.to(like.device)
    # Every process has read the same file: nothing needs to be sent.
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _first(names: Sequence[str]) -> str:
    """The first names of a list, each in a bearable length, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(name[:200] for name in names[:SHOWN]) + more


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo `optimizer_tensors`; the state of sharded parameters is sharded as they are.

    Raises:
        ValueError: The tensors are not the state of such an optimiser.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    keys = _state_of_one(optimizer)
    expected = {
        f"{index}.{key}": torch.Size() if scalar else parameter.shape
        for index, parameter in enumerate(parameters)
        for key, scalar in keys.items()
    }
    odd = [
        name
        for name, tensor in tensors.items()
        if tensor.shape != expected.get(name)
        or not tensor.is_floating_point()
        or (tensor.ndim == 0 and not 0 <= tensor.item() < math.inf)  # a count of steps
    ]
    complete = {f"{name.partition('.')[0]}.{key}" for name in tensors for key in keys}
    if odd := odd or sorted(complete - set(tensors)):
        raise ValueError(
            f"of the state of the optimiser {type(optimizer).__name__}, {_first(odd)} is missing, "
            "unknown, of another shape or type, or no count of steps"
        )
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = shard(tensor, parameters[int(index)])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _state_of_one(optimizer: torch.optim.Optimizer) -> dict[str, bool]:
    """The names of what an optimiser keeps of each parameter, and which of it are single numbers.

    Found by a step of a copy with a parameter of one number.
    """
    probe = torch.nn.Parameter(torch.zeros(1, 1))
    probe.grad = torch.zeros_like(probe)
    twin = copy.copy(optimizer)
    twin.param_groups = [{**optimizer.param_groups[0], "params": [probe]}]
    twin.state = defaultdict(dict)
    twin.step()
    return {key: value.ndim == 0 for key, value in twin.state[probe].items()}


def random_tensors(generator: torch.Generator, device: torch.device) -> dict[str, Tensor]:
    """The state of a generator, and of those that torch has for the CPU and another device."""
    found = {"data": generator.get_state(), "torch": torch.get_rng_state()}
    if device.type != "cpu":
        found[device.type] = torch.get_device_module(device).get_rng_state(device)
    return found


def restore_random(
    generator: torch.Generator, device: torch.device, tensors: Mapping[str, Tensor]
) -> None:
    """Undo `random_tensors`."""
    generator.set_state(tensors["data"])
    torch.set_rng_state(tensors["torch"])
    if device.type != "cpu" and device.type in tensors:
        torch.get_device_module(device).set_rng_state(tensors[device.type], device)


# What a model may have besides the weights in a file, such as masks.
MORE_NUMBERS, MORE_PARAMETERS = 2**22, 16
SIZED = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)


# Whoever wrote a file chose its configuration as well, and a few bytes there can ask for any number
# of weights. A model that needs more than its file holds is refused before they are allocated.


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
    for option in dataclasses.fields(config.model):
        name, value = option.name, getattr(config.model, option.name)
        # A whole number for a real one, as a base of positions, is no size.
        size = isinstance(value, int) and option.type is not float
        if size and value > max(numbers, 1000):
            raise CheckpointError(
                f"{source} does not fit its configuration: it has {numbers:,} weights, which "
                f"`{name}` = {value:,} exceeds. Use another file, or train again."
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
    """Raises before a tensor is made that the numbers in a file could not fill."""

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
