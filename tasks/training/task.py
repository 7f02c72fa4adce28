"""What the training loop asks of a task: batches, and what to make of them."""

from typing import Any, Protocol

import torch
from torch import Tensor


class Task(Protocol):
    """What the loop needs to know of a task."""

    def batch(
        self, size: int, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Inputs, and target classes of the same leading dims, at this share of the budget."""
        ...

    def look(self, model: Any) -> dict[str, float]:
        """Figures on a few held-out samples, named test_*; nothing depends on them."""
        ...

    def score(self, looked: dict[str, float]) -> float:
        """How good a look was: more is better."""
        ...

    def figures(self, right: Tensor) -> dict[str, float]:
        """What to show of a training batch, given which of its classes are right."""
        ...

    def position(self) -> Any:
        """Where the next batch begins, as JSON values; None if the generator decides that."""
        return None

    def go_to(self, position: Any) -> None:
        """Go on from what `position` returned."""
