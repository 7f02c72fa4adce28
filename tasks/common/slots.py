"""The samples in training."""

import dataclasses
from typing import Any

import torch
from torch import Tensor


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
