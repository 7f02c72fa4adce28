"""The samples that are in training at the moment."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from solvers.torch_internals import pytree


@dataclasses.dataclass
class ActiveSamples:
    """The samples in training, one in each row of the batch, with the state of their solves.

    Attributes:
        x: Inputs, shape (batch, ...).
        target: Target classes, shape (batch, ...).
        age: Number of segments that each sample has had, shape (batch,).
        state: State in which the last segment of each sample ended; None before the first segment.
    """

    x: Tensor
    target: Tensor
    age: Tensor
    state: Any = None

    def start(self, rows: slice) -> Any:
        """The state in which the next segment of these rows starts; None if all rows are new."""
        if self.state is None:
            return None
        return pytree.tree_map(lambda leaf: leaf[rows], self.state)

    def store(self, rows: slice, state: Any) -> None:
        """Store the state in which the last segment of these rows ended."""
        if self.state is None:
            count = len(self.age)
            self.state = pytree.tree_map(lambda leaf: leaf.new_zeros(count, *leaf.shape[1:]), state)
        pytree.tree_map(lambda all_, some: all_[rows].copy_(some), self.state, state)

    def tensors(self) -> dict[str, Tensor]:
        """All of this as named tensors, for a checkpoint."""
        named = {"x": self.x, "target": self.target, "age": self.age}
        if isinstance(self.state, Tensor):
            return {**named, "state": self.state}
        return {**named, **{f"state.{i}": leaf for i, leaf in enumerate(self.state or ())}}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device) -> "ActiveSamples":
        """Undo `tensors`."""
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        parts = [moved[name] for name in sorted(moved) if name.startswith("state.")]
        state = moved.get("state", tuple(parts) or None)
        return cls(moved["x"], moved["target"], moved["age"], state)
