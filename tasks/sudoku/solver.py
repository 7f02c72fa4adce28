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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from tasks.puzzles.puzzle import Puzzle
from tasks.sudoku.board import SYMBOLS, Board, PuzzleError, format_line

_EFFORT = 160_000_000  # guesses of `complete` times candidates of a board: some seconds


@dataclass(frozen=True)
class SearchResult:
    """The result of `search`.

    Args:
        solutions: Distinct solutions, at most as many as asked for.
        num_guesses: Branch assignments tried until the search stopped.
        gave_up: Whether the guesses were used up, so that there may be further solutions.
    """

    solutions: list[tuple[int, ...]]
    num_guesses: int
    gave_up: bool = False


def search(
    puzzle: Sequence[int], board: Board, limit: int = 2, most_guesses: int | None = None
) -> SearchResult:
    """Search depth first, and stop at `limit` solutions or when there are no more.

    Args:
        puzzle: One digit a cell, 0 for a blank.
        board: Its geometry.
        limit: Solutions to stop at: 1 finds a solution, 2 tells whether it is the only one.
        most_guesses: Guesses to give up at; by default none.

    Example:
        >>> from tasks.sudoku.board import format_line, parse
        >>> result = search(parse("1... ..3. .4.. ...2"), Board.of(4))
        >>> [format_line(solution) for solution in result.solutions], result.num_guesses
        (['1324423124133142'], 0)
    """
    engine = engine_for(board)
    start = engine.start(engine.clue_bits(puzzle))
    found, num_guesses = engine.search(*start, limit, most_guesses=most_guesses)
    gave_up = len(found) < limit and num_guesses == most_guesses
    return SearchResult([engine.digits(state) for state in found], num_guesses, gave_up)


def complete(source: str, question: Sequence[int], board: Board) -> Puzzle:
    """Make a `Puzzle` of a question: add its only solution and our rating.

    The rating is the number of guesses that `search` needs to find the solution and to prove that
    there is no other: 0 for a puzzle that singles solve, at least 2 for any other. It counts every
    digit tried in a branching cell, the right one included, over the whole search tree. Because of
    the proof it does not depend on the order in which digits are tried; it does depend on which
    cell is branched on, so symmetric copies of one puzzle may differ. Published ratings come from
    other solvers and are on other scales.

    Raises:
        PuzzleError: There is no solution, or more than one, or the search of a board larger than
            9x9 had not ended when its guesses were used up: 39,062 of them at 16x16, and 10,240 at
            25x25.
    """
    # A search of a smaller board always ends soon.
    most_guesses = _EFFORT // board.side**3 if board.side > 9 else None
    result = search(question, board, 2, most_guesses)
    answer = format_line(_only(result, board))
    return Puzzle(source, format_line(question), answer, result.num_guesses)


def _only(result: SearchResult, board: Board) -> tuple[int, ...]:
    if result.gave_up:
        found = "found one solution, and no second one" if result.solutions else "found no solution"
        raise PuzzleError(
            f"The exact solver {found}, within {result.num_guesses:,} guesses, and gave up: on a "
            f"{board.name} board it cannot say whether the puzzle has exactly one. Add clues."
        )
    if not result.solutions:
        raise PuzzleError("The puzzle has no solution. Check its clues.")
    if len(result.solutions) > 1:
        first, second = result.solutions
        cell = next(cell for cell in range(board.num_cells) if first[cell] != second[cell])
        raise PuzzleError(
            f"The puzzle has more than one solution: {board.place(cell)} may be "
            f"{SYMBOLS[first[cell]]} or {SYMBOLS[second[cell]]}, as in {format_line(first)} and "
            f"{format_line(second)}. Add a clue."
        )
    return result.solutions[0]


class _Family(NamedTuple):
    """Constraints of one kind, such as all places of a digit in a row.

    The candidates of a constraint are laid out on two strides, so they are counted by folding
    along one and then along the other: each fold adds shifted copies.
    """

    inner: tuple[int, ...]  # shifts of the first fold
    outer: tuple[int, ...]
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
        self._compatible = _Compatible(self._compatible_with)

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
            inner=tuple(inner * i for i in range(1, num_inner)),
            outer=tuple(outer * i for i in range(1, num_outer)),
            first=first,
            spread=sum(
                1 << (inner * i + outer * j) for i in range(num_inner) for j in range(num_outer)
            ),
        )

    def _compatible_with(self, candidate: int) -> int:
        cell = candidate % self.board.num_cells
        other_digits = (self._column_of_digits << cell) & ~(1 << candidate)
        peers = self._peers[cell] << (candidate - cell)
        return self.everything & ~(other_digits | peers)

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
            singles = self._singles(candidates)
            if singles is None:
                return 0, 0
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

    def _singles(self, candidates: int) -> int | None:
        """The candidates that are alone in a constraint; None if a constraint has none left."""
        singles = 0
        for inner, outer, first, spread in self._families:
            # Per constraint: `some` holds at least one candidate, `several` at least two.
            some, several = candidates, 0
            for shift in inner:
                copy = candidates >> shift
                several |= some & copy
                some |= copy
            all_some, all_several = some, several
            for shift in outer:
                copy = some >> shift
                all_several |= (several >> shift) | (all_some & copy)
                all_some |= copy
            all_some &= first
            if all_some != first:
                return None
            singles |= candidates & ((all_some & ~all_several) * spread)
        return singles

    def search(
        self,
        candidates: int,
        placed: int,
        limit: int,
        rng: Random | None = None,
        most_guesses: int | None = None,
    ) -> tuple[list[int], int]:
        """Search depth first from a state.

        Args:
            candidates: What is still possible.
            placed: What has been taken as true already.
            limit: Solutions to stop at.
            rng: Tries the digits of a cell in random order instead of ascending.
            most_guesses: Guesses to give up at.

        Returns:
            Solved states, and the number of guesses; `most_guesses` exactly if it gave up.
        """
        found: list[int] = []
        waiting = [(candidates, placed)]
        num_guesses = -1  # the first state is no guess
        while waiting and len(found) < limit:
            if num_guesses + 1 == most_guesses:
                return found, num_guesses + 1
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

    def is_needed(
        self, clue: int, others: Iterable[int], most_guesses: int | None = None
    ) -> bool | None:
        """Whether a puzzle has further solutions without this clue; None if it gave up.

        Cheaper than a search for two solutions: any further one has another digit there.
        """
        candidates, placed = self.start(others)
        found, num_guesses = self.search(
            candidates & ~clue, placed, limit=1, most_guesses=most_guesses
        )
        return None if not found and num_guesses == most_guesses else bool(found)


class _Compatible(dict[int, int]):
    """What stays possible once a candidate is true, by its index + 1, which is its `bit_length`.

    Made when it is first asked for: those of a 25x25 board take 30 MB.
    """

    def __init__(self, make: Callable[[int], int]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, length: int) -> int:
        self[length] = made = self._make(length - 1)
        return made


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
