"""A grid puzzle as text, which needs no torch."""

import math
from dataclasses import dataclass

# The source of puzzles that a generator of this project made.
GENERATED = "generated"


@dataclass(frozen=True)
class Puzzle:
    """One row of a puzzle file.

    Args:
        source: Where the puzzle comes from.
        question: The given cells, one character a cell.
        answer: The solution, one character a cell.
        rating: How hard it is, on the scale of `source`: published lists have scales of their
            own. Compare ratings within one source only.
    """

    source: str
    question: str
    answer: str
    rating: int

    @property
    def side(self) -> int:
        """Cells of a row."""
        return math.isqrt(len(self.question))


def place(cell: int, side: int) -> str:
    """Row and column of a cell for messages, counted from 1, as `(row 1, column 9)`."""
    row, column = divmod(cell, side)
    return f"(row {row + 1}, column {column + 1})"


def place_in_text(cell: int, num_cells: int) -> str:
    """As `place`, for a text that may have too few or too many cells to be a square."""
    side = math.isqrt(num_cells)
    return place(cell, side) if side**2 == num_cells else f"character {cell + 1} of {num_cells}"


def smallest_copy(grid: str) -> str:
    """A value that two grids share exactly if one is a rotation or reflection of the other.

    Args:
        grid: One character a cell, row by row, of a square.
    """
    side = math.isqrt(len(grid))
    rows = [grid[i : i + side] for i in range(0, side * side, side)]
    copies = []
    for _ in range(4):
        rows = ["".join(column) for column in zip(*rows[::-1], strict=True)]
        copies += ["".join(rows), "".join(row[::-1] for row in rows)]
    return min(copies)
