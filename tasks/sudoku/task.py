"""The Sudoku task, as the shared commands see it.

A method imports what only training, files or pictures need when it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tasks.puzzles.puzzle import Puzzle
from tasks.puzzles.task import GridTask, Sampler
from tasks.sudoku.board import SYMBOLS, Board, format_grid, is_valid_solution, parse
from tasks.sudoku.config import DEFAULT_PRESET, PRESETS, SudokuConfig
from tasks.sudoku.solver import complete

if TYPE_CHECKING:
    from tasks.puzzles.pictures import GridPicture

# The share of the budget after which training puzzles are no longer made easier.
CURRICULUM = 0.5
# Of a cell, in a picture: more of them would be too small to be read.
MOST_CANDIDATES = 9


class SudokuTask(GridTask[SudokuConfig]):
    """Symbols are digits, 0 a blank."""

    name = "sudoku"
    config_type = SudokuConfig
    presets = PRESETS
    default_preset = DEFAULT_PRESET
    bands = (0, 3, 10, 30, 100)
    all_different = True
    symbols = SYMBOLS
    legend = "The digits with a * were given; one with a ! took the place of a given one."
    published = (
        " The published train.csv and test.csv of Sudoku-Extreme are at "
        "https://huggingface.co/datasets/sapientinc/sudoku-extreme."
    )
    first_symbol = 1

    @property
    def version(self) -> Any:
        """See `GridTask`."""
        from tasks.sudoku.generate import GENERATOR_VERSION
        from tasks.sudoku.relatives import RELATIVES_VERSION

        return GENERATOR_VERSION, RELATIVES_VERSION

    def generate(self, config: SudokuConfig) -> tuple[list[Puzzle], list[Puzzle]]:
        """See `generate.train_and_test` and `relatives.harder`."""
        from tasks.sudoku.generate import train_and_test
        from tasks.sudoku.relatives import harder

        data, seed = config.data, config.train.seed
        counts = data.train_puzzles, data.test_puzzles
        train, test = train_and_test(
            *counts, data.board, data.clues, minimal=data.minimal, seed=seed
        )
        if data.min_guesses:
            train, test = (harder(part, data.min_guesses, seed=seed) for part in (train, test))
        return train, test

    def enlarged(self, puzzles: list[Puzzle], config: SudokuConfig) -> list[Puzzle]:
        """See `GridTask`: here, the puzzles, followed by their relatives."""
        from tasks.sudoku.relatives import RELATIVES_VERSION, relatives

        count, seed = config.data.relatives, config.train.seed
        if not count:
            return puzzles
        print(f"Getting {count} relatives of each, made once and then kept ...", flush=True)
        wanted = {
            "version": RELATIVES_VERSION,
            "puzzles": [puzzle.question for puzzle in puzzles],
            "count": count,
            "seed": seed,
        }
        made, _ = self.cache(config).get(
            "relatives",
            wanted,
            (count * len(puzzles), 0),
            lambda: (relatives(puzzles, count, seed=seed), []),
        )
        return puzzles + made

    def read(self, path: Path, config: SudokuConfig, skip_bad: bool = False) -> list[Puzzle]:
        """See `files.read_puzzles`."""
        from tasks.sudoku.files import read_puzzles

        return read_puzzles(path, config.data.board, skip_bad=skip_bad)

    def side_of(self, path: Path) -> int | None:
        """See `GridTask`."""
        from tasks.sudoku.files import side_of

        return side_of(path)

    def identity(self, puzzle: Puzzle, config: SudokuConfig) -> Any:
        """See `generate.symmetry_invariant`; rarely equal for puzzles that are no copies, too."""
        from tasks.sudoku.generate import symmetry_invariant

        return symmetry_invariant(puzzle.question)

    def sampler(self, puzzles: Sequence[Puzzle], config: SudokuConfig) -> Sampler:
        """See `GridTask`: random symmetric copies, or a fixed number of copies of each puzzle."""
        from tasks.sudoku.augment import augment, numbered_copies, reveal

        questions, classes = self.encode(puzzles, config)
        answers = classes + 1

        def sample(
            rows: Tensor, generator: torch.Generator, progress: float
        ) -> tuple[Tensor, Tensor]:
            x, y = questions[rows], answers[rows]
            if config.data.copies is None:
                x, y = augment(x, y, config.data.board, generator)
            else:
                numbers = torch.randint(config.data.copies, rows.shape, generator=generator)
                keys = rows * config.data.copies + numbers
                x, y = numbered_copies(x, y, numbers, keys, config.data.board, config.train.seed)
            most = round(config.data.extra_clues * (1 - progress / CURRICULUM))
            if most > 0:
                x = reveal(x, y, most, generator)
            return x, y - 1

        return sample

    def is_valid(self, x: Tensor, classes: Tensor, config: SudokuConfig) -> Tensor:
        """See `GridTask`: every unit holds every digit once, and the clues are kept."""
        return is_valid_solution(x, classes + 1)

    def complete(self, source: str, question: Sequence[int]) -> Puzzle:
        """See `solver.complete`: exactly one solution."""
        return complete(source, question, Board.for_length(len(question)))

    def question(self, text: str, config: SudokuConfig | None = None) -> list[int]:
        """See `board.parse`: clues must not contradict each other."""
        return parse(text, config and config.data.board)

    def split(self, text: str) -> list[tuple[int, str]]:
        """See `GridTask`: lines that start with `#` are comments."""
        return [entry for entry in super().split(text) if not entry[1].startswith("#")]

    def example(self, config: SudokuConfig) -> str:
        """See `GridTask`: two fifths of the cells are given, or half on a board beyond 9x9."""
        from tasks.sudoku.generate import generate

        board, seed = config.data.board, config.train.seed
        clues = round((0.4 if board.side <= 9 else 0.5) * board.num_cells)
        return generate(1, board, (clues, clues + 1), seed=seed)[0].question

    def examples(self, config: SudokuConfig) -> dict[str, str]:
        """See `GridTask`: on a board of 9x9 also some of `examples.NINE`."""
        from tasks.sudoku.examples import NINE

        return super().examples(config) | (NINE if config.data.side == 9 else {})

    def show(self, x: Sequence[int], classes: Sequence[int]) -> str:
        """See `GridTask`: here, the filled board."""
        return format_grid([c + 1 for c in classes], given=list(x))

    def picture(self, x: Sequence[int], answer: Sequence[int]) -> GridPicture:
        """See `GridTask`: here, with lines around boxes, and candidates that are large enough."""
        from tasks.puzzles.pictures import GridPicture
        from tasks.sudoku.pictures import SudokuPicture

        board = Board.for_length(len(x))
        kind = SudokuPicture if board.side <= MOST_CANDIDATES else GridPicture
        characters, box = SYMBOLS[: board.side + 1], (board.box_rows, board.box_cols)
        return kind(board.side, x, answer, characters, self.first_symbol, box)
