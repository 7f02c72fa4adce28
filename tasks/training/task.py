"""What the training loop asks of a task: batches, and how to judge the model."""

from typing import Any, Protocol

import torch
from torch import Tensor


class SourceLost(ValueError):
    """The data cannot be read any further; `Task.batch` raises it without losing a sample."""


class Task(Protocol):
    """The data of a run, as the training loop sees it."""

    def batch(
        self, size: int, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Draw a training batch.

        Args:
            size: Samples.
            generator: Source of all that is random.
            progress: Share of the training budget that is used, in [0, 1].

        Returns:
            Inputs and target classes, of the same leading dims.
        """
        ...

    def share(
        self, rows: Tensor, size: int, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Draw a training batch, of which this process needs only some rows.

        The position, and the generator, are afterwards as if all had been drawn. A task overrides
        this where the other rows need not be made.

        Args:
            rows: Numbers of the rows, rising.
            size: See `batch`, as for the others.
            generator: Source of all that is random.
            progress: Share of the training budget that is used, in [0, 1].
        """
        x, target = self.batch(size, generator, progress)
        return x[rows], target[rows]

    def validate(self, model: Any) -> dict[str, float]:
        """Metrics of a few held-out samples, named test_*; training does not depend on them."""
        ...

    def selection_score(self, validation: dict[str, float]) -> float:
        """One number by which the best checkpoint is chosen, from what `validate` returned.

        The higher, the better.
        """
        ...

    def metrics(self, right: Tensor) -> dict[str, float]:
        """Metrics of a training batch, given which of its classes are predicted right."""
        ...

    def state_dict(self) -> Any:
        """The place in the data at which the next batch begins, as JSON values.

        None if the generator alone decides which samples come next.
        """
        return None

    def load_state_dict(self, state: Any) -> None:
        """Continue from the place that `state_dict` returned."""
