"""Mazes as tensors, and random rotations and reflections of whole batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.maze.maze import SYMBOLS, Maze, MazeError, label

_TO_CODES = bytes.maketrans(SYMBOLS.encode("ascii"), bytes(range(len(SYMBOLS))))


def to_tensors(mazes: Sequence[Maze], side: int) -> tuple[Tensor, Tensor]:
    """Questions and answers as codes.

    Returns:
        Two long tensors of shape (mazes, side * side).

    Raises:
        MazeError: A maze is not of this size.
    """
    for number, maze in enumerate(mazes):
        if not len(maze.question) == len(maze.answer) == side * side:
            raise MazeError(
                f"Maze {number} has a question of {len(maze.question)} cells and an answer of "
                f"{len(maze.answer)}; a {side}x{side} maze has {side * side}."
            )
    questions = _codes([maze.question for maze in mazes], side)
    return questions, _codes([maze.answer for maze in mazes], side)


def _codes(lines: list[str], side: int) -> Tensor:
    if not lines:
        return torch.empty(0, side * side, dtype=torch.long)
    codes = bytearray("".join(lines).encode("ascii").translate(_TO_CODES))
    return torch.frombuffer(codes, dtype=torch.uint8).long().view(len(lines), -1)


class Symmetries:
    """The eight rotations and reflections of each of a set of mazes, with their labels.

    Of the many shortest paths of a maze, `label` picks one by a rule that prefers directions, so
    a turned label is not the label of the turned maze. Each copy's label is therefore computed
    anew, by a search that takes some 0.2 ms for 30x30 cells: much for every sample of every batch,
    little for once. So this is an object, not a function of a batch: it labels a copy when that
    is first drawn, and keeps the label. No start-up time, and after some epochs a batch is no
    more than a look-up.

    Args:
        questions: Codes, (mazes, side * side). They need no answers. Kept, not copied.
    """

    def __init__(self, questions: Tensor):
        num_mazes, num_cells = questions.shape
        self.questions = questions
        self._sources = _sources(num_cells)
        self._labels = torch.zeros(num_mazes, len(self._sources), num_cells, dtype=torch.uint8)
        self._known = torch.zeros(num_mazes, len(self._sources), dtype=torch.bool)

    def batch(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Some of the mazes, each as one of its eight copies, drawn uniformly.

        Args:
            rows: Numbers of mazes, (batch,).
            generator: Source of all randomness; its state alone determines the result.

        Returns:
            Questions and labels as codes, (batch, side * side), long.
        """
        copies = torch.randint(len(self._sources), rows.shape, generator=generator)
        questions = self.questions[rows].gather(1, self._sources[copies])
        for i in (~self._known[rows, copies]).nonzero().flatten().tolist():
            found = torch.tensor(label(questions[i].tolist()), dtype=torch.uint8)
            self._labels[rows[i], copies[i]] = found
        self._known[rows, copies] = True
        return questions, self._labels[rows, copies].long()


def _sources(num_cells: int) -> Tensor:
    """For each cell of each of the eight copies the cell it is taken from, (8, cells)."""
    side = round(num_cells**0.5)
    cells = torch.arange(num_cells).view(side, side)
    turned = [cells.rot90(turns) for turns in range(4)]
    return torch.stack([copy.flatten() for grid in turned for copy in (grid, grid.T)])
