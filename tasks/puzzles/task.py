"""The interface between one kind of grid puzzle and the commands that all kinds share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from models import GridModel
from tasks.puzzles.config import GridConfig
from tasks.puzzles.evaluate import predict, scores
from tasks.puzzles.files import GridPuzzle
from tasks.training.task import Task

# Held-out puzzles of a validation during training.
VALIDATION_PUZZLES = 100

Sampler = Callable[[Tensor, torch.Generator, float], tuple[Tensor, Tensor]]
"""(rows of the training set, generator, share of the budget that is used) -> symbols and classes of
random symmetric copies."""
Frames = Sequence[tuple[int, float, Tensor]]
"""(step, relative residual, probabilities of shape (cells, symbols)) of a solve, in order."""


P = TypeVar("P", bound=GridPuzzle)
C = TypeVar("C", bound=GridConfig)


class GridTask(ABC, Generic[P, C]):
    """One kind of grid puzzle: its data, rules and pictures.

    Attributes:
        name: As in `python -m tasks.<name>`.
        config_type: The task's configuration.
        presets: Configurations by name.
        default_preset: The one that a command takes if none is named.
        noun: What one puzzle is called in messages.
        bands: Upper ends of the bands of rating that accuracy is split by.
        verdict: What an answer that keeps the rules is called.
        first_symbol: The symbol that class 0 stands for; the others follow.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[GridConfig]]
    presets: ClassVar[dict[str, Any]]
    default_preset: ClassVar[str]
    noun: ClassVar[str] = "puzzle"
    bands: ClassVar[tuple[int, ...]]
    verdict: ClassVar[str] = "a valid solution"
    first_symbol: ClassVar[int] = 0

    @abstractmethod
    def make(self, config: C) -> tuple[list[P], list[P]]:
        """Generate training and test puzzles, or read them from the cache."""

    @abstractmethod
    def read(self, path: Path, config: C, skip_bad: bool = False) -> list[P]:
        """Read a file of puzzles of the size that `config` names."""

    @abstractmethod
    def identity(self, puzzle: P, config: C) -> Any:
        """A value that is equal for two puzzles if one is a symmetric copy of the other."""

    def enlarged(self, puzzles: list[P], config: C) -> list[P]:
        """The training puzzles, together with others that are derived from them."""
        return puzzles

    @abstractmethod
    def encode(self, puzzles: Sequence[P], config: C) -> tuple[Tensor, Tensor]:
        """Symbols of the questions and classes of the answers, shape (puzzles, cells)."""

    @abstractmethod
    def sampler(self, puzzles: Sequence[P], config: C) -> Sampler:
        """The source of training batches of these puzzles."""

    @abstractmethod
    def is_valid(self, x: Tensor, classes: Tensor, config: C) -> Tensor:
        """Whether answers keep the rules and fit their questions, shape (puzzles,)."""

    def assume(self, x: Tensor, cells: Tensor, classes: Tensor) -> Tensor:
        """The questions with one more cell filled in, each; see `tasks.puzzles.guessing`."""
        raise ValueError(
            f"`--attempts` guesses cells of a question, but a {self.noun} cannot show any of its "
            "answer. Use `--breadth`."
        )

    @abstractmethod
    def parse(self, text: str) -> P:
        """Parse a question that a user typed, and find its exact answer.

        Raises:
            ValueError: The text is no question, or it has no answer.
        """

    @abstractmethod
    def question(self, text: str, config: C) -> list[int]:
        """The symbols of a question of the size that `config` names.

        Unlike `parse` it searches for no answer, so that the cost is small for any text.

        Raises:
            ValueError: The text is no question of this size.
        """

    @abstractmethod
    def example(self, config: C) -> str:
        """An easy question of the size that `config` names, always the same, in one line."""

    @abstractmethod
    def line(self, symbols: Sequence[int]) -> str:
        """A question or an answer in one line, one character a cell."""

    def split(self, text: str) -> list[str]:
        """Split the text of a file into questions: here, one a line."""
        return [line for line in text.split("\n") if line.strip()]

    @abstractmethod
    def show(self, x: Sequence[int], classes: Sequence[int]) -> str:
        """A question and its answer as text for the terminal."""

    @abstractmethod
    def draw(self, puzzle: P, frames: Frames, config: C, folder: Path) -> list[Path]:
        """Draw the solve of one puzzle; return the paths of the pictures."""

    def load(self, config: C) -> tuple[list[P], list[P]]:
        """The training and test puzzles of a configuration, read from its files or generated.

        Raises:
            ValueError: There are too few to fill a batch.
        """
        files = config.data.train_data, config.data.test_data
        made = self.make(config) if None in files else ([], [])
        sets = [self.read(f, config) if f else m for f, m in zip(files, made, strict=True)]
        train, test = sets
        if config.data.train_data and len(train) > config.data.train_puzzles:
            train = Random(config.train.seed).sample(train, config.data.train_puzzles)
        if len(train) < config.train.batch_size:
            raise ValueError(
                f"The training set has {len(train)} {self.noun}s, fewer than `batch_size` = "
                f"{config.train.batch_size}. Give more of them, or lower `--batch-size`."
            )
        return train, test

    def overlap(self, train: Sequence[P], test: Sequence[P], config: C) -> int:
        """How many test puzzles are symmetric copies of a training puzzle."""
        known = {self.identity(puzzle, config) for puzzle in train}
        return sum(self.identity(puzzle, config) in known for puzzle in test)


class Batches(Task):
    """Grid puzzles as the training loop sees them.

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
