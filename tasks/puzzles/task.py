"""What the shared commands need to know of one kind of grid puzzle."""

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
    """A kind of grid puzzle. Its data and pictures; models and commands are shared.

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
        """Training and test puzzles, made or from the cache."""

    @abstractmethod
    def read(self, path: Path, config: C, skip_bad: bool = False) -> list[P]:
        """Puzzles of a file, of the size that `config` names."""

    @abstractmethod
    def identity(self, puzzle: P, config: C) -> Any:
        """Equal for two puzzles if one is the other in disguise."""

    def enlarged(self, puzzles: list[P], config: C) -> list[P]:
        """Training puzzles, and others that are made from them."""
        return puzzles

    @abstractmethod
    def encode(self, puzzles: Sequence[P], config: C) -> tuple[Tensor, Tensor]:
        """Symbols of the questions and classes of the answers, shape (puzzles, cells)."""

    @abstractmethod
    def sampler(self, puzzles: Sequence[P], config: C) -> Sampler:
        """Source of training batches."""

    @abstractmethod
    def is_valid(self, x: Tensor, classes: Tensor, config: C) -> Tensor:
        """Whether answers keep the rules and fit their questions, shape (puzzles,)."""

    def assume(self, x: Tensor, cells: Tensor, classes: Tensor) -> Tensor:
        """Questions with one more cell given, each; see `tasks.puzzles.guessing`."""
        raise ValueError(
            f"`--attempts` guesses cells of a question, but a {self.noun} cannot show any of its "
            "answer. Use `--breadth`."
        )

    @abstractmethod
    def parse(self, text: str) -> P:
        """A question that somebody typed, with its exact answer; refused if it has none."""

    @abstractmethod
    def question(self, text: str, config: C) -> list[int]:
        """The symbols of a question of the size that `config` names.

        Unlike `parse`, looks for no answer: the cost is small whatever somebody sends.

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
        """The questions in a file of them: one a line."""
        return [line for line in text.splitlines() if line.strip()]

    @abstractmethod
    def show(self, x: Sequence[int], classes: Sequence[int]) -> str:
        """Question and answer as text."""

    @abstractmethod
    def draw(self, puzzle: P, frames: Frames, config: C, folder: Path) -> list[Path]:
        """Pictures of one puzzle's solve."""

    def load(self, config: C) -> tuple[list[P], list[P]]:
        """Training and test puzzles of a configuration, from its files or made.

        Raises:
            ValueError: There are too few to fill a batch.
        """
        files = config.train_data, config.test_data
        made = self.make(config) if None in files else ([], [])
        sets = [self.read(f, config) if f else m for f, m in zip(files, made, strict=True)]
        train, test = sets
        if config.train_data and len(train) > config.train_puzzles:
            train = Random(config.seed).sample(train, config.train_puzzles)
        if len(train) < config.batch_size:
            raise ValueError(
                f"The training set has {len(train)} {self.noun}s, fewer than `batch_size` = "
                f"{config.batch_size}. Give more of them, or lower `--batch-size`."
            )
        return train, test

    def overlap(self, train: Sequence[P], test: Sequence[P], config: C) -> int:
        """How many test puzzles are a training puzzle, perhaps in disguise."""
        known = {self.identity(puzzle, config) for puzzle in train}
        return sum(self.identity(puzzle, config) in known for puzzle in test)


class Batches(Task):
    """Grid puzzles as the training loop sees them.

    Args:
        sampler: Source of batches.
        count: Training puzzles that it draws from.
        held_out: Symbols and classes of the puzzles for validation.
        eval_steps: Solver budget of validation.
    """

    def __init__(
        self, sampler: Sampler, count: int, held_out: tuple[Tensor, Tensor], eval_steps: int
    ):
        self.sampler, self.count, self.eval_steps = sampler, count, eval_steps
        self.held_out = held_out

    def batch(
        self, size: int, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Random training puzzles, each as a random symmetric copy of itself."""
        rows = torch.randint(self.count, (size,), generator=generator)
        return self.sampler(rows, generator, progress)

    def validate(self, model: GridModel) -> dict[str, float]:
        """Exact accuracy on the held-out puzzles."""
        x, target = self.held_out
        if len(x) == 0:
            return {}
        found = predict(model, x, max_steps=self.eval_steps)
        return {"test_exact": scores(found.classes, target)["exact_accuracy"]}

    def selection_score(self, validation: dict[str, float]) -> float:
        """See `Task`: here, exact accuracy."""
        return validation["test_exact"]

    def metrics(self, right: Tensor) -> dict[str, float]:
        """Accuracy of cells and of whole answers."""
        return {
            "cell_accuracy": right.float().mean().item(),
            "exact_accuracy": right.flatten(1).all(1).float().mean().item(),
        }
