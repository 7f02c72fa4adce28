"""Puzzles as tensors, and the rotations and reflections of whole batches of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.puzzles.puzzle import Puzzle


def to_tensors(puzzles: Sequence[Puzzle], side: int, symbols: str) -> tuple[Tensor, Tensor]:
    """Questions and answers as numbers of symbols.

    Args:
        puzzles: Of one size.
        side: Cells of a row.
        symbols: The characters of a cell in order.

    Returns:
        Two long tensors of shape (puzzles, side * side).

    Raises:
        ValueError: A puzzle is of another size.
    """
    for number, puzzle in enumerate(puzzles):
        if not len(puzzle.question) == len(puzzle.answer) == side**2:
            raise ValueError(
                f"Puzzle {number} has a question of {len(puzzle.question)} cells and an answer of "
                f"{len(puzzle.answer)}; a grid of {side}x{side} has {side**2}."
            )
    numbers = bytes.maketrans(symbols.encode(), bytes(range(len(symbols))))

    def rows(texts: list[str]) -> Tensor:
        if not texts:
            return torch.empty(0, side**2, dtype=torch.long)
        cells = bytearray("".join(texts).encode("ascii").translate(numbers))
        return torch.frombuffer(cells, dtype=torch.uint8).long().view(len(texts), -1)

    return rows([p.question for p in puzzles]), rows([p.answer for p in puzzles])


def square_symmetries(num_cells: int) -> Tensor:
    """The rotations and reflections of a square grid.

    Returns:
        Shape (8, cells): for each cell of each copy, the cell of the original that it is.
    """
    side = math.isqrt(num_cells)
    cells = torch.arange(num_cells).view(side, side)
    turned = [cells.rot90(turns) for turns in range(4)]
    return torch.stack([copy.flatten() for grid in turned for copy in (grid, grid.T)])
