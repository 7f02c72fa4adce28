"""The samples in training."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from solvers.torch_internals import pytree


@dataclasses.dataclass
class Slots:
    """The samples in training, one a slot.

    Attributes:
        x: Inputs, shape (slots, ...).
        target: Classes, shape (slots, ...).
        age: Segments that each sample has had, shape (slots,).
        state: Where its last segment ended; None before the first.
    """

    x: Tensor
    target: Tensor
    age: Tensor
    state: Any = None

    def start(self, rows: slice) -> Any:
        """Where the next segment of these slots begins; None if all of them are new."""
        if self.state is None:
            return None
        return pytree.tree_map(lambda leaf: leaf[rows], self.state)

    def keep(self, rows: slice, state: Any) -> None:
        """Note where the last segment of these slots ended, in place of where it began."""
        if self.state is None:
            count = len(self.age)
            self.state = pytree.tree_map(lambda leaf: leaf.new_zeros(count, *leaf.shape[1:]), state)
        pytree.tree_map(lambda all_, some: all_[rows].copy_(some), self.state, state)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        named = {"x": self.x, "target": self.target, "age": self.age}
        if isinstance(self.state, Tensor):
            return {**named, "state": self.state}
        return {**named, **{f"state.{i}": leaf for i, leaf in enumerate(self.state or ())}}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device) -> "Slots":
        """Undo `tensors`."""
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        parts = [moved[name] for name in sorted(moved) if name.startswith("state.")]
        state = moved.get("state", tuple(parts) or None)
        return cls(moved["x"], moved["target"], moved["age"], state)
