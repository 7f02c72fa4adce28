"""Checkpoints: one safetensors file, written atomically, read without running any code."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "attractor-models-1"


class CheckpointError(ValueError):
    """A file is not a checkpoint that this version can use."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to use a model, or to go on training it.

    Attributes:
        tensors: Named groups of tensors, as `model`, `average`, `optimizer`, `random`.
        meta: JSON values: task, config, step, seconds, history.
    """

    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write to a temporary file beside `path`, then replace it in one step."""
        flat = {
            f"{group}/{name}": tensor.detach().cpu().contiguous()
            for group, tensors in self.tensors.items()
            for name, tensor in tensors.items()
        }
        temporary = path.with_name(path.name + ".tmp")
        save_file(flat, temporary, {"format": FORMAT, "meta": json.dumps(self.meta)})
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a file written by `save`.

        Raises:
            CheckpointError: The file is missing, truncated, or something else.
        """
        if not path.is_file():
            raise CheckpointError(f"No checkpoint at {path}. Train one first, or name another.")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                names = list(file.keys())
                flat = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is not a readable checkpoint ({error}). It may be truncated: use an "
                "earlier one, or train again."
            ) from error
        if header.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} is a safetensors file, but not a checkpoint of this project: its format "
                f"is {header.get('format')!r}, expected {FORMAT!r}."
            )
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, tensor in flat.items():
            group, _, rest = name.partition("/")
            tensors.setdefault(group, {})[rest] = tensor
        return cls(tensors, json.loads(header["meta"]))


def load_weights(module: torch.nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Load a state dict, with an error that names the file.

    Raises:
        CheckpointError: Names or shapes do not fit the module.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {source} do not fit this model: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
