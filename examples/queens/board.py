"""Boards with some of their queens: the rules, all completions, and a generator.

A board is a flat sequence of symbols, row by row: 0 an open cell `.`, 1 an empty one `-`, 2 a
queen `Q`. A question has open cells, an answer has none. Row and column of a queen are its place.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations, islice
from math import isqrt
from random import Random

from tasks.puzzles.puzzle import Puzzle, smallest_copy
from tasks.puzzles.workers import Recipe, answer_draws

SYMBOLS = ".-Q"
OPEN, EMPTY, QUEEN = range(3)
# One in so many answers, with its rotations and reflections, is for testing alone.
HELD_OUT = 5
_MAX_DRAWS = 10_000  # for one board, before its kind is called hopeless


def completions(
    queens: Mapping[int, int], side: int, banned: Sequence[int] = (), rng: Random | None = None
) -> Iterator[dict[int, int]]:
    """All ways to place the missing queens so that none attacks another.

    Args:
        queens: The column of the queen in each row that has one; they do not attack each other.
        side: Rows, columns and queens.
        banned: Cells that stay empty.
        rng: Tries columns in random order instead of ascending.
    """
    rows = [row for row in range(side) if row not in queens]

    def place(number: int, taken: int) -> Iterator[dict[int, int]]:
        if number == len(rows):
            yield dict(queens)
            return
        row, columns = rows[number], list(range(side))
        if rng is not None:
            rng.shuffle(columns)
        for column in columns:
            line = lines(row, column, side)
            if not taken & line and row * side + column not in banned:
                for found in place(number + 1, taken | line):
                    yield {**found, row: column}

    yield from place(0, sum(lines(row, column, side) for row, column in queens.items()))


def lines(row: int, column: int, side: int) -> int:
    """The row, the column and the two diagonals of a cell, a bit each."""
    falling, rising = row - column + side, row + column
    return 1 << row | 1 << side + column | 1 << 2 * side + falling | 1 << 4 * side + rising


def complete(source: str, board: Sequence[int]) -> Puzzle:
    """Make a puzzle of a question: add its first completion; the rating counts missing queens.

    Raises:
        ValueError: Queens attack each other, or the rest of them has no place.
    """
    side = isqrt(len(board))
    places = [divmod(cell, side) for cell, symbol in enumerate(board) if symbol == QUEEN]
    for one, other in combinations(places, 2):
        if lines(*one, side) & lines(*other, side):
            rows = f"rows {one[0] + 1} and {other[0] + 1}"
            raise ValueError(f"The queens in {rows} attack each other. Remove one.")
    banned = [cell for cell, symbol in enumerate(board) if symbol == EMPTY]
    found = next(completions(dict(places), side, banned), None)
    if found is None:
        raise ValueError("The other queens have no place on this board. Remove one that is given.")
    question = "".join(SYMBOLS[symbol] for symbol in board)
    return Puzzle(source, question, drawn(found, side, "-"), side - len(places))


def drawn(queens: Mapping[int, int], side: int, rest: str) -> str:
    """A board in one line, with the character `rest` in cells without a queen."""
    cells = ("Q" if queens.get(row) == c else rest for row in range(side) for c in range(side))
    return "".join(cells)


@dataclass(frozen=True)
class QueensRecipe(Recipe):
    """Boards with exactly one completion.

    Args:
        side: Rows, columns and queens.
        low: Fewest queens that are given.
        high: Most.
        seed: Of everything.
        held_out: Whether answers are those for testing.
    """

    side: int
    low: int
    high: int
    seed: int
    held_out: bool

    def draw(self, index: int) -> Puzzle:
        """See `Recipe`."""
        rng = Random(f"queens/{self.seed}/{self.held_out}/{index}")
        count = rng.randint(self.low, self.high)
        for _ in range(_MAX_DRAWS):
            answer = next(completions({}, self.side, rng=rng), {})
            text = drawn(answer, self.side, "-")
            if is_held_out(text) != self.held_out:
                continue
            given = {row: answer[row] for row in sorted(rng.sample(range(self.side), count))}
            if len(list(islice(completions(given, self.side), 2))) == 1:
                question = drawn(given, self.side, ".")
                return Puzzle("generated", question, text, self.side - count)
        raise ValueError(
            f"No board of {self.side}x{self.side} cells and {count} queens with one completion "
            f"in {_MAX_DRAWS:,} draws. Ask for more queens, or a larger side."
        )


def is_held_out(answer: str) -> bool:
    """Whether an answer is for testing; the same for its rotations and reflections."""
    return sha256(smallest_copy(answer).encode()).digest()[0] % HELD_OUT == 0


if __name__ == "__main__":
    answer_draws(QueensRecipe)
