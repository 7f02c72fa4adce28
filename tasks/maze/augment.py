"""Random rotations and reflections of whole batches of mazes."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.maze.maze import label
from tasks.puzzles.task import square_symmetries


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
        self._sources = square_symmetries(num_cells)
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
