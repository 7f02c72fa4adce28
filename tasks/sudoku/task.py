"""Sudoku as the training loop sees it: puzzles made or read, and batches of symmetric copies."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models import GridAttractor, GridTransformer
from tasks.common.evaluate import predict, scores
from tasks.sudoku.augment import augment, to_tensors
from tasks.sudoku.board import Board, Puzzle
from tasks.sudoku.cache import cached
from tasks.sudoku.config import SudokuConfig

# How many held-out puzzles the curve during training looks at.
LOOK_PUZZLES = 100


def make_puzzles(config: SudokuConfig) -> tuple[list[Puzzle], list[Puzzle]]:
    """Training and test puzzles of a configuration, from the cache where they are there."""
    return cached(
        config.train_puzzles,
        config.test_puzzles,
        config.board,
        (config.min_clues, config.max_clues),
        minimal=config.minimal,
        seed=config.seed,
    )


def as_classes(puzzles: Sequence[Puzzle], board: Board) -> tuple[Tensor, Tensor]:
    """Questions as symbols (0 blank), answers as classes (digit - 1)."""
    questions, answers = to_tensors(puzzles, board)
    return questions, answers - 1


class SudokuTask:
    """Batches for the loop.

    Args:
        board: The geometry.
        train: Puzzles to draw from.
        test: Held-out puzzles.
        eval_steps: Solver budget of a look at held-out puzzles.
    """

    name = "sudoku"

    def __init__(
        self, board: Board, train: Sequence[Puzzle], test: Sequence[Puzzle], eval_steps: int
    ):
        self.board, self.eval_steps = board, eval_steps
        self.questions, self.answers = to_tensors(train, board)
        self.held_out = as_classes(test[:LOOK_PUZZLES], board)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random training puzzles, each as a random symmetric copy of itself."""
        rows = torch.randint(len(self.questions), (size,), generator=generator)
        x, y = augment(self.questions[rows], self.answers[rows], self.board, generator)
        return x, y - 1

    def look(self, model: GridAttractor | GridTransformer) -> float:
        """Exact accuracy on the first held-out puzzles."""
        x, target = self.held_out
        if len(x) == 0:
            return float("nan")
        return scores(predict(model, x, max_steps=self.eval_steps).classes, target)[
            "exact_accuracy"
        ]
