"""The Sudoku task, as the shared commands see it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.puzzles.task import Frames, GridTask, Sampler
from tasks.sudoku.augment import augment, numbered_copies, reveal, to_tensors
from tasks.sudoku.board import Board, Puzzle, format_grid, format_line, is_valid_solution, parse
from tasks.sudoku.cache import cached, cached_relatives
from tasks.sudoku.config import DEFAULT_PRESET, PRESETS, SudokuConfig
from tasks.sudoku.files import read_puzzles
from tasks.sudoku.generate import generate, symmetry_invariant
from tasks.sudoku.pictures import animate_convergence, draw_convergence
from tasks.sudoku.solver import complete

# The share of the budget after which training puzzles are no longer made easier.
CURRICULUM = 0.5


class SudokuTask(GridTask[Puzzle, SudokuConfig]):
    """Symbols are digits, 0 a blank; class c stands for the digit c + 1."""

    name = "sudoku"
    config_type = SudokuConfig
    presets = PRESETS
    default_preset = DEFAULT_PRESET
    bands = (0, 3, 10, 30, 100)
    first_symbol = 1

    def make(self, config: SudokuConfig) -> tuple[list[Puzzle], list[Puzzle]]:
        """See `GridTask`: made by our generator, see `generate.train_and_test`."""
        return cached(
            config.data.train_puzzles,
            config.data.test_puzzles,
            config.data.board,
            (config.data.min_clues, config.data.max_clues),
            minimal=config.data.minimal,
            guesses=config.data.min_guesses,
            seed=config.train.seed,
        )

    def enlarged(self, puzzles: list[Puzzle], config: SudokuConfig) -> list[Puzzle]:
        """See `GridTask`: here, the puzzles, followed by their relatives."""
        if not config.data.relatives:
            return puzzles
        print(
            f"Getting {config.data.relatives} relatives of each, made once and then kept ...",
            flush=True,
        )
        board = config.data.board
        return puzzles + cached_relatives(
            puzzles, config.data.relatives, board, seed=config.train.seed
        )

    def read(self, path: Path, config: SudokuConfig, skip_bad: bool = False) -> list[Puzzle]:
        """See `files.read_puzzles`."""
        return read_puzzles(path, config.data.board, skip_bad=skip_bad)

    def identity(self, puzzle: Puzzle, config: SudokuConfig) -> Any:
        """See `generate.symmetry_invariant`; rarely equal for puzzles that are no copies, too."""
        return symmetry_invariant(puzzle.question)

    def encode(self, puzzles: Sequence[Puzzle], config: SudokuConfig) -> tuple[Tensor, Tensor]:
        """See `GridTask`: digits of the questions, and digits - 1 of the answers."""
        questions, answers = to_tensors(puzzles, config.data.board)
        return questions, answers - 1

    def sampler(self, puzzles: Sequence[Puzzle], config: SudokuConfig) -> Sampler:
        """See `GridTask`: random symmetric copies, or a fixed number of copies of each puzzle."""
        questions, answers = to_tensors(puzzles, config.data.board)

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

    def assume(self, x: Tensor, cells: Tensor, classes: Tensor) -> Tensor:
        """See `GridTask`: fills the digit of the class into the cell."""
        return x.scatter(1, cells[:, None], classes[:, None] + 1)

    def parse(self, text: str) -> Puzzle:
        """See `GridTask`: digits with `.` or 0 for blanks, and exactly one solution."""
        digits = parse(text)
        return complete("typed", digits, Board.for_length(len(digits)))

    def question(self, text: str, config: SudokuConfig) -> list[int]:
        """See `GridTask`: digits with `.` or 0 for blanks, without contradicting clues."""
        return parse(text, config.data.board)

    def example(self, config: SudokuConfig) -> str:
        """See `GridTask`: a puzzle in which two fifths of the cells are given."""
        clues = round(0.4 * config.data.board.num_cells)
        return generate(1, config.data.board, (clues, clues + 1), seed=config.train.seed)[
            0
        ].question

    def line(self, symbols: Sequence[int]) -> str:
        """See `GridTask`: digits, and `.` for blanks."""
        return format_line(symbols)

    def show(self, x: Sequence[int], classes: Sequence[int]) -> str:
        """See `GridTask`: here, the filled board."""
        return format_grid([c + 1 for c in classes], given=list(x))

    def draw(
        self, puzzle: Puzzle, frames: Frames, config: SudokuConfig, folder: Path
    ) -> list[Path]:
        """See `GridTask`: here, a sheet and an animation."""
        board = config.data.board
        asked, answer = parse(puzzle.question, board), parse(puzzle.answer, board)
        return [
            draw_convergence(board, asked, frames, answer, folder / "convergence.png"),
            animate_convergence(board, asked, frames, answer, folder / "convergence.gif"),
        ]
