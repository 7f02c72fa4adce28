"""Grid puzzles as the training loop sees them."""

import torch
from torch import Tensor

from models import GridModel
from tasks.puzzles.evaluate import predict, scores
from tasks.puzzles.task import Sampler
from tasks.training.task import Task

# Held-out puzzles of a validation during training.
VALIDATION_PUZZLES = 100


class Batches(Task):
    """Batches of puzzles from a sampler, and the scores of a validation.

    Args:
        sampler: Source of batches.
        count: Training puzzles that it draws from.
        held_out: Symbols and classes of the puzzles for validation.
        max_steps: Solver budget of validation; None for a model without a solve.
    """

    def __init__(
        self, sampler: Sampler, count: int, held_out: tuple[Tensor, Tensor], max_steps: int | None
    ):
        self.sampler, self.count, self.max_steps = sampler, count, max_steps
        self.held_out = held_out

    def batch(
        self, size: int, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Random training puzzles, each as a random symmetric copy of itself."""
        rows = torch.randint(self.count, (size,), generator=generator)
        return self.sampler(rows, generator, progress)

    def validate(self, model: GridModel) -> dict[str, float]:
        """See `Task`: here, exact accuracy on the held-out puzzles."""
        x, target = self.held_out
        if len(x) == 0:
            return {}
        found = predict(model, x, max_steps=self.max_steps)
        return {"test_exact": scores(found.classes, target)["exact_accuracy"]}

    def selection_score(self, validation: dict[str, float]) -> float:
        """See `Task`: here, exact accuracy."""
        return validation["test_exact"]

    def metrics(self, right: Tensor) -> dict[str, float]:
        """See `Task`: here, accuracy of cells and of whole answers."""
        return {
            "cell_accuracy": right.float().mean().item(),
            "exact_accuracy": right.flatten(1).all(1).float().mean().item(),
        }
