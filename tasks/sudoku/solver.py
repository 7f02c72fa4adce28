"""An exact Sudoku solver, fast enough in plain Python to generate puzzles on a laptop.

A state is one integer, the set of candidates: bit `(digit - 1) * num_cells + cell` says that
`digit` may still stand in `cell`. Python works on such an integer (729 bits for a 9x9 board) at
nearly the price of a small one, so a rule is applied to the whole board at once by shifts and
masks, and going back after a wrong guess costs nothing: the older integer is still there.

Every rule of Sudoku says that a certain set of candidates holds exactly one that is true: the
digits of a cell, the places of a digit in a row, in a column, in a box. We call such a set a
constraint. The solver

1. finds every constraint with one candidate left (naked and hidden singles), places them all,
   removes what they exclude, and repeats; a constraint with none left is a contradiction;
2. when no single is left, picks a cell with the fewest candidates, of those the one with the
   most open peers, of those the first, and tries its digits in ascending order, depth first.

It knows no further technique. The number of guesses, the digits tried in step 2, is our measure
of how hard a puzzle is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from tasks.puzzles.puzzle import Puzzle
from tasks.sudoku.board import Board, PuzzleError, format_line


@dataclass(frozen=True)
class SearchResult:
    """The result of `search`.

    Args:
        solutions: Distinct solutions, at most as many as asked for.
        num_guesses: Branch assignments tried until the search stopped.
    """

    solutions: list[tuple[int, ...]]
    num_guesses: int


def search(puzzle: Sequence[int], board: Board, limit: int = 2) -> SearchResult:
    """Search depth first, and stop at `limit` solutions or when there are no more.

    Args:
        puzzle: One digit a cell, 0 for a blank.
        board: Its geometry.
        limit: Solutions to stop at: 1 finds a solution, 2 tells whether it is the only one.

    Example:
        >>> from tasks.sudoku.board import format_line, parse
        >>> result = search(parse("1... ..3. .4.. ...2"), Board.of(4))
        >>> [format_line(solution) for solution in result.solutions], result.num_guesses
        (['1324423124133142'], 0)
    """
    engine = engine_for(board)
    found, num_guesses = engine.search(*engine.start(engine.clue_bits(puzzle)), limit)
    return SearchResult([engine.digits(state) for state in found], num_guesses)


def complete(source: str, question: Sequence[int], board: Board) -> Puzzle:
    """Make a `Puzzle` of a question: add its only solution and our rating.

    The rating is the number of guesses that `search` needs to find the solution and to prove that
    there is no other: 0 for a puzzle that singles solve, at least 2 for any other. It counts every
    digit tried in a branching cell, the right one included, over the whole search tree. Because of
    the proof it does not depend on the order in which digits are tried; it does depend on which
    cell is branched on, so symmetric copies of one puzzle may differ. Published ratings come from
    other solvers and are on other scales.

    Raises:
        PuzzleError: There is no solution, or more than one.
    """
    result = search(question, board, limit=2)
    answer = format_line(_only(result, board))
    return Puzzle(source, format_line(question), answer, result.num_guesses)


def _only(result: SearchResult, board: Board) -> tuple[int, ...]:
    if not result.solutions:
        raise PuzzleError("The puzzle has no solution. Check its clues.")
    if len(result.solutions) > 1:
        first, second = result.solutions
        cell = next(cell for cell in range(board.num_cells) if first[cell] != second[cell])
        raise PuzzleError(
            f"The puzzle has more than one solution: {board.place(cell)} may be {first[cell]} or "
            f"{second[cell]}, as in {format_line(first)} and {format_line(second)}. Add a clue."
        )
    return result.solutions[0]


class _Family(NamedTuple):
    """Constraints of one kind, such as all places of a digit in a row.

    The candidates of a constraint are laid out on two strides, so they are counted by folding
    along one and then along the other: each fold adds two shifted copies. Where a stride has but
    two entries the second copy is shifted out of the board altogether, so it adds nothing.
    """

    shift1: int
    shift2: int
    shift3: int
    shift4: int
    first: int  # the first candidate of every constraint
    spread: int  # times a first candidate: all candidates of its constraint


class Engine:
    """The solver for one board, on states of one integer; see the top of this file.

    `search` and `rating` are the plain interface. The generator works on states directly,
    because it solves hundreds of nearly equal puzzles for each one it makes.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        num_cells, side = board.num_cells, board.side
        self.num_bits = num_cells * side
        self.everything = (1 << self.num_bits) - 1
        self._layers = tuple(range(0, self.num_bits, num_cells))
        self._one_layer = (1 << num_cells) - 1
        self._column_of_digits = sum(1 << layer for layer in self._layers)
        self._families = self._build_families()
        self._peers = [sum(1 << peer for peer in peers) for peers in board.peers]
        # What stays possible once a candidate is true, by the candidate's index + 1, which is
        # its `bit_length`.
        self._compatible = [0] + [
            self._compatible_with(cell, layer)
            for layer in self._layers
            for cell in range(num_cells)
        ]

    def _build_families(self) -> tuple[_Family, ...]:
        side, box_rows, box_cols = self.board.side, self.board.box_rows, self.board.box_cols
        num_cells = self.board.num_cells
        strides = (
            ((1, box_cols), (box_cols, side // box_cols)),  # columns of a row
            ((side, box_rows), (side * box_rows, side // box_rows)),  # rows of a column
            ((1, box_cols), (side, box_rows)),  # columns and rows of a box
            ((num_cells, box_rows), (num_cells * box_rows, side // box_rows)),  # digits of a cell
        )
        row_of, column_of = self.board.row_of, self.board.column_of
        cells = range(num_cells)
        first_cells = (
            [cell for cell in cells if column_of[cell] == 0],
            [cell for cell in cells if row_of[cell] == 0],
            [c for c in cells if row_of[c] % box_rows == 0 and column_of[c] % box_cols == 0],
        )
        firsts = [sum(1 << c for c in starts) * self._column_of_digits for starts in first_cells]
        firsts.append(self._one_layer)
        return tuple(map(self._family, strides, firsts))

    def _family(self, strides: tuple[tuple[int, int], tuple[int, int]], first: int) -> _Family:
        (inner, num_inner), (outer, num_outer) = strides
        return _Family(
            shift1=inner,
            shift2=2 * inner if num_inner == 3 else self.num_bits,
            shift3=outer,
            shift4=2 * outer if num_outer == 3 else self.num_bits,
            first=first,
            spread=sum(
                1 << (inner * i + outer * j) for i in range(num_inner) for j in range(num_outer)
            ),
        )

    def _compatible_with(self, cell: int, layer: int) -> int:
        other_digits = (self._column_of_digits << cell) & ~(1 << (layer + cell))
        return self.everything & ~(other_digits | (self._peers[cell] << layer))

    def clue_bits(self, puzzle: Sequence[int]) -> list[int]:
        """The clues of a puzzle as candidates."""
        num_cells = self.board.num_cells
        return [1 << ((digit - 1) * num_cells + cell) for cell, digit in enumerate(puzzle) if digit]

    def start(self, clues: Iterable[int]) -> tuple[int, int]:
        """The state (candidates, placed) once these clues are placed."""
        candidates, placed = self.everything, 0
        for clue in clues:
            candidates &= self._compatible[clue.bit_length()]
            placed |= clue
        return candidates, placed

    def digits(self, state: int) -> tuple[int, ...]:
        """The digit of each cell in a state with one candidate a cell, or 0 where it has none."""
        num_cells = self.board.num_cells
        return tuple(
            (cell_state.bit_length() + num_cells - 1) // num_cells
            for cell_state in (
                (state >> cell) & self._column_of_digits for cell in range(num_cells)
            )
        )

    def propagate(self, candidates: int, placed: int) -> tuple[int, int]:
        """Place singles until none is left.

        Returns:
            The state reached, or (0, 0) at a contradiction.
        """
        while True:
            singles = 0
            for shift1, shift2, shift3, shift4, first, spread in self._families:
                # Per constraint: `some` holds at least one candidate, `several` at least two.
                b, c = candidates >> shift1, candidates >> shift2
                some = candidates | b
                several = (candidates & b) | (some & c)
                some |= c
                b, c = some >> shift3, some >> shift4
                pair = some | b
                several |= (several >> shift3) | (several >> shift4) | (some & b) | (pair & c)
                some = (pair | c) & first
                if some != first:
                    return 0, 0
                singles |= candidates & ((some & ~several) * spread)
            singles &= ~placed
            if not singles:
                return candidates, placed
            placed |= singles
            while singles:
                single = singles & -singles
                candidates &= self._compatible[single.bit_length()]
                singles ^= single
            if placed & ~candidates:  # two singles exclude each other
                return 0, 0

    def search(
        self, candidates: int, placed: int, limit: int, rng: Random | None = None
    ) -> tuple[list[int], int]:
        """Search depth first from a state.

        Args:
            candidates: What is still possible.
            placed: What has been taken as true already.
            limit: Solutions to stop at.
            rng: Tries the digits of a cell in random order instead of ascending.

        Returns:
            Solved states, and the number of guesses.
        """
        found: list[int] = []
        waiting = [(candidates, placed)]
        num_guesses = -1  # the first state is no guess
        while waiting and len(found) < limit:
            num_guesses += 1
            candidates, placed = self.propagate(*waiting.pop())
            if not candidates:
                continue
            if candidates == placed:
                found.append(placed)
                continue
            options = self._branch(candidates)
            if rng is not None:
                rng.shuffle(options)
            for option in reversed(options):
                remaining = candidates & self._compatible[option.bit_length()]
                waiting.append((remaining, placed | option))
        return found, num_guesses

    def _branch(self, candidates: int) -> list[int]:
        """The candidates of the cell to guess in, in ascending order of digits."""
        one = two = three = 0  # cells with at least so many candidates
        for layer in self._layers:
            cells = (candidates >> layer) & self._one_layer
            three |= two & cells
            two |= one & cells
            one |= cells
        ties = (two & ~three) or self._narrowest(candidates, two)
        best, most = 0, -1
        while ties:
            cell = ties & -ties
            ties ^= cell
            open_peers = (two & self._peers[cell.bit_length() - 1]).bit_count()
            if open_peers > most:
                best, most = cell, open_peers
        return list(single_bits(candidates & (best * self._column_of_digits)))

    def _narrowest(self, candidates: int, cells: int) -> int:
        """Those of `cells` that have the fewest candidates."""
        counts = {
            cell: (candidates & (cell * self._column_of_digits)).bit_count()
            for cell in single_bits(cells)
        }
        fewest = min(counts.values())
        return sum(cell for cell, count in counts.items() if count == fewest)

    def is_needed(self, clue: int, others: Iterable[int]) -> bool:
        """Whether a puzzle has further solutions without this clue.

        Cheaper than a search for two solutions: any further one has another digit there.
        """
        candidates, placed = self.start(others)
        found, _ = self.search(candidates & ~clue, placed, limit=1)
        return bool(found)


def single_bits(bits: int) -> Iterator[int]:
    """The bits that are set, lowest first, each as a number of its own."""
    while bits:
        bit = bits & -bits
        yield bit
        bits ^= bit


@functools.cache
def engine_for(board: Board) -> Engine:
    """The engine of a board; its tables are built once."""
    return Engine(board)
