"""N-queens completion: some queens are given, and a model places the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from examples.queens.board import QUEEN, SYMBOLS, QueensRecipe, complete
from models import GridSpec
from tasks.puzzles.config import GridConfig, GridData
from tasks.puzzles.puzzle import Puzzle, smallest_copy
from tasks.puzzles.task import GridTask, Sampler, square_symmetries
from tasks.puzzles.workers import train_and_test


@dataclass(frozen=True, kw_only=True)
class QueensData(GridData):
    """Boards with some of their queens; see `GridData`.

    Attributes:
        side: Rows, columns and queens.
        min_queens: Fewest queens of a board that is made.
        max_queens: Most.
    """

    making: ClassVar[tuple[str, ...]] = ("test_puzzles", "min_queens", "max_queens")

    side: int = 9
    min_queens: int = 4
    max_queens: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(4, "side")
        if not 0 < self.min_queens <= self.max_queens < self.side:
            raise ValueError(
                f"`min_queens` and `max_queens` must satisfy 0 < min <= max < {self.side}, got "
                f"{self.min_queens} and {self.max_queens}."
            )


@dataclass(frozen=True, kw_only=True)
class QueensConfig(GridConfig):
    """Train on boards of one size, then evaluate on others of that size."""

    data_type: ClassVar[type[QueensData]] = QueensData

    data: QueensData

    def spec(self) -> GridSpec:
        """The shape of the model."""
        side = self.data.side
        return GridSpec(num_symbols=2, side=side, units=units(side), **self.shape())


def units(side: int) -> tuple[tuple[int, ...], ...]:
    """The row, the column and the two diagonals of each cell."""
    places = [divmod(cell, side) for cell in range(side**2)]
    return (
        tuple(row for row, _ in places),
        tuple(column for _, column in places),
        tuple(row + column for row, column in places),
        tuple(row - column + side - 1 for row, column in places),
    )


class QueensTask(GridTask[QueensConfig]):
    """Symbols are those of `board.SYMBOLS`; the classes are "empty" and "queen"."""

    name = "queens"
    config_type = QueensConfig
    presets: ClassVar[dict[str, QueensConfig]] = {
        "tiny": QueensConfig.of(side=8, train_puzzles=200, test_puzzles=40, minutes=0.5),
        "standard": QueensConfig.of(
            train_puzzles=4000, minutes=5.0, threads=1, optimizer="muon", learning_rate=5e-3
        ),
    }
    default_preset = "standard"
    noun = "board"
    bands = (3, 4, 5)
    verdict = "a valid placement"
    symbols = SYMBOLS
    first_symbol = 1

    def generate(self, config: QueensConfig) -> tuple[list[Puzzle], list[Puzzle]]:
        """See `GridTask`: no answer of a test board is one of a training board, turned or not."""
        data = config.data
        train, test = (
            QueensRecipe(data.side, data.min_queens, data.max_queens, config.train.seed, held_out)
            for held_out in (False, True)
        )
        counts = (data.train_puzzles, data.test_puzzles)
        return train_and_test(counts, (train, test), lambda puzzle: self.identity(puzzle, config))

    def complete(self, source: str, question: Sequence[int]) -> Puzzle:
        """See `board.complete`."""
        return complete(source, question)

    def identity(self, puzzle: Puzzle, config: QueensConfig) -> Any:
        """See `GridTask`: here, equal for boards with the same answer, turned or not."""
        return smallest_copy(puzzle.answer)

    def sampler(self, puzzles: Sequence[Puzzle], config: QueensConfig) -> Sampler:
        """See `GridTask`: random rotations and reflections."""
        x, y = self.encode(puzzles, config)
        symmetries = square_symmetries(x.shape[1])

        def sample(
            rows: Tensor, generator: torch.Generator, progress: float
        ) -> tuple[Tensor, Tensor]:
            cells = symmetries[torch.randint(len(symmetries), rows.shape, generator=generator)]
            return x[rows].gather(1, cells), y[rows].gather(1, cells)

        return sample

    def is_valid(self, x: Tensor, classes: Tensor, config: QueensConfig) -> Tensor:
        """See `GridTask`: a queen in each row and column, no two on a diagonal, clues kept."""
        symbols = classes + self.first_symbol
        queens = (symbols == QUEEN).float()
        rows, columns, *diagonals = (
            queens @ one_hot(torch.tensor(kind)).float() for kind in units(config.data.side)
        )
        right = ((x == 0) | (x == symbols)).all(1) & (rows == 1).all(1) & (columns == 1).all(1)
        return right & (torch.cat(diagonals, 1) <= 1).all(1)

    def example(self, config: QueensConfig) -> str:
        """See `GridTask`: a board on which three queens are missing."""
        side = config.data.side
        return QueensRecipe(side, side - 3, side - 3, config.train.seed, True).draw(0).question
