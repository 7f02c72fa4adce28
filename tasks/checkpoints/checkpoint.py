"""What a checkpoint holds, and its way into models and optimisers and out of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.checkpoints import file, sharded
from tasks.checkpoints.file import CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """Everything that is needed to use a model, or to continue its training.

    Attributes:
        tensors: Named groups of tensors, as `model`, `average`, `optimizer`, `random`.
        meta: JSON values: task, config, step, seconds, history.
    """

    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path, older: Sequence[Path] = (), best: Path | None = None) -> None:
        """Write the checkpoint as one file; see `file.write`."""
        file.write(path, self.tensors, self.meta, older, best)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read one file, or a folder of sharded files.

        Raises:
            CheckpointError: It is missing, truncated, damaged, or something else.
        """
        return cls(*(sharded.read(path) if path.is_dir() else file.read(path)))


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
