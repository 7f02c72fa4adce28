"""Make puzzles, each with exactly one solution, and split them into training and test sets.

A puzzle starts as a random full grid: the solver fills an empty board, trying digits in random
order. Every grid can come up, though not all equally often. Clues are then taken away in random
order, each one for good if the solution stays unique without it, until the puzzle has as many
as asked for, or until every clue left is necessary (a minimal puzzle).

Puzzle number i depends on the seed and on i alone, never on how many processes share the work.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from random import Random

from tasks.puzzles import workers as shared
from tasks.puzzles.puzzle import Puzzle
from tasks.puzzles.workers import Recipe, answer_draws, different
from tasks.sudoku.board import Board, parse
from tasks.sudoku.solver import Engine, complete, engine_for, single_bits

GENERATOR_VERSION = 1
"""Raise it with any change that makes the same call return other puzzles: caches depend on it."""

SOURCE = "generated"
"""The `source` of every puzzle made here."""

_FEWEST_CLUES = {4: 4, 6: 8, 9: 17}  # no puzzle with fewer has a unique solution
_MAX_GRIDS = 5000  # full grids tried for one puzzle before its clue range is called hopeless


@dataclass(frozen=True)
class _Recipe(Recipe):
    side: int
    clues: tuple[int, int] | None
    minimal: bool
    stream: str

    def __post_init__(self) -> None:
        if self.clues is None:
            return
        low, high = self.clues
        fewest, most = _FEWEST_CLUES[self.side], self.side**2
        if not fewest <= low <= high <= most:
            raise ValueError(
                f"`clues` must be (low, high) with {fewest} <= low <= high <= {most} on a "
                f"{self.side}x{self.side} board, got {self.clues!r}. Use None for as few as "
                "uniqueness allows."
            )

    def draw(self, index: int) -> Puzzle:
        """See `Recipe`."""
        rng = Random(f"{self.stream}/{index}")
        board = Board.of(self.side)
        engine = engine_for(board)
        low, high = self.clues or (0, board.num_cells)
        if not self.minimal:
            low = high = rng.randint(low, high)
        for _ in range(_MAX_GRIDS):
            clues = _dig(_full_grid(engine, rng), engine, rng, 0 if self.minimal else low, high)
            if clues is not None and low <= len(clues) <= high:
                return complete(SOURCE, engine.digits(sum(clues)), board)
        kind = "minimal puzzle" if self.minimal else "puzzle"
        raise ValueError(
            f"None of {_MAX_GRIDS} random grids led to a {kind} with {low} to {high} clues on a "
            f"{board.name} board. Such puzzles are too rare to draw: change `clues`."
        )


def generate(
    count: int,
    board: Board,
    clues: tuple[int, int] | None = None,
    *,
    minimal: bool = False,
    seed: int = 0,
    workers: int | None = None,
) -> list[Puzzle]:
    """Make `count` different puzzles, each with exactly one solution.

    Cost on one CPU core: a 9x9 puzzle of 30 to 34 clues takes about 2 ms, a minimal one 4 ms; a
    minimal 4x4 or 6x6 puzzle less than 1 ms.

    Args:
        count: How many. No two are identical, though some may be symmetric copies.
        board: The board.
        clues: Range (low, high) of the number of clues, both included. A target is drawn
            uniformly from it for each puzzle, and grids are dug until one reaches that target,
            so the clue counts are uniform too. None: as few as uniqueness allows, which makes
            every puzzle minimal.
        minimal: Keep only puzzles in which no clue can be spared. With `clues`, minimal puzzles
            outside the range are dropped, so counts inside it keep their natural frequencies.
        seed: The same seed gives the same puzzles, in the same order.
        workers: Processes to share the work, by default one per CPU core; few puzzles are
            made in this process whatever it says. The result does not depend on it.

    Raises:
        ValueError: The range is impossible, nearly so, or holds fewer than `count` puzzles.
    """
    return different(count, _recipe(board, clues, minimal, f"{seed}/train"), workers)


def train_and_test(
    train_count: int,
    test_count: int,
    board: Board,
    clues: tuple[int, int] | None = None,
    *,
    minimal: bool = False,
    seed: int = 0,
    workers: int | None = None,
) -> tuple[list[Puzzle], list[Puzzle]]:
    """Make a training set and a test set of the same kind that share no puzzle.

    The training set is what `generate` returns for the same arguments. On 6x6 and 9x9 boards a
    test puzzle is replaced if it could be a symmetric copy of a training puzzle, that is, if the
    two have the same `symmetry_invariant`; this may reject more than needed, never less.

    On 4x4 boards no test puzzle is identical to a training puzzle, and no more than that holds.
    There are 85,632 minimal 4x4 puzzles but only 36 up to symmetry, and any training set worth
    its name has a copy of each: a 4x4 run shows that the machinery works, not that a model
    generalises beyond the symmetries.

    Args and errors are those of `generate`.
    """
    train, test = (_recipe(board, clues, minimal, f"{seed}/{part}") for part in ("train", "test"))
    key = str if board.side == 4 else symmetry_invariant
    return shared.train_and_test(
        (train_count, test_count), (train, test), lambda puzzle: key(puzzle.question), workers
    )


def _recipe(board: Board, clues: tuple[int, int] | None, minimal: bool, stream: str) -> _Recipe:
    return _Recipe(board.side, clues, minimal or clues is None, stream)


def _full_grid(engine: Engine, rng: Random) -> int:
    (grid,), _ = engine.search(*engine.start([]), limit=1, rng=rng)
    return grid


def _dig(grid: int, engine: Engine, rng: Random, enough: int, most: int) -> list[int] | None:
    """Remove clues in random order while the solution stays unique.

    A clue that could not go earlier can not go later either, so one try for each leaves a
    minimal puzzle.

    Args:
        grid: A full grid, as a state of `engine`.
        engine: The solver.
        rng: Draws the order.
        enough: Stop at this many clues.
        most: Give up as soon as more than this many are necessary.

    Returns:
        The clues left, or None after giving up.
    """
    waiting = list(single_bits(grid))
    rng.shuffle(waiting)
    needed: list[int] = []
    while waiting and len(needed) + len(waiting) > enough:
        clue = waiting.pop()
        if engine.is_needed(clue, needed + waiting):
            needed.append(clue)
            if len(needed) > most:
                return None
    return needed + waiting


def symmetry_invariant(question: str, rounds: int = 4) -> int:
    """A number that symmetric copies of a puzzle share, and hardly any other puzzles.

    The symmetries are: renaming digits, permuting rows in a band, bands, columns in a stack and
    stacks, and, where boxes are square, transposing. Rows, columns, boxes, bands, stacks and
    digits are coloured by kind. Then, `rounds` times, each clue is coloured by its row, column,
    box and digit, and each of those takes a new colour from its own, from its clues and from
    the bands, stacks and boxes it crosses (Weisfeiler-Leman refinement). The number is a hash of
    the multiset of all colours. Positions and names of digits enter nowhere, so no symmetry can
    change it. The converse fails: puzzles that are no copies of each other may share it.

    Args:
        question: The clues, as in `Puzzle.question`.
        rounds: How often to refine. By 4, what tells two puzzles apart has reached every node.
    """
    grid = parse(question)
    board = Board.for_length(len(grid))
    colours, neighbours = _structure(board)
    clues = [_nodes_of_clue(cell, digit, board) for cell, digit in enumerate(grid) if digit]
    clue_colours: list[int] = []
    for _ in range(rounds):
        seen = [[colours[other] for other in others] for others in neighbours]
        # Sorted, so that row and column swap freely. Where they may not, their kinds differ.
        clue_colours = [hash(tuple(sorted(colours[node] for node in clue))) for clue in clues]
        for clue, colour in zip(clues, clue_colours, strict=True):
            for node in clue:
                seen[node].append(colour)
        colours = [
            hash((colour, *sorted(others))) for colour, others in zip(colours, seen, strict=True)
        ]
    return hash((*sorted(colours), *sorted(clue_colours)))


def _nodes_of_clue(cell: int, digit: int, board: Board) -> tuple[int, int, int, int]:
    """Row, column, box and digit of a clue, numbered as in `_structure`."""
    side = board.side
    row, column, box = board.row_of[cell], board.column_of[cell], board.box_of[cell]
    return row, side + column, 2 * side + box, 3 * side + digit - 1


@functools.cache
def _structure(board: Board) -> tuple[list[int], list[list[int]]]:
    """The kind of each row, column, box, digit, band and stack, in this order, and its neighbours.

    A band is next to its rows and boxes, a stack to its columns and boxes.
    """
    side, num_bands = board.side, board.side // board.box_rows
    num_stacks = board.side // board.box_cols
    bands = [4 * side + band for band in range(num_bands)]
    stacks = [4 * side + num_bands + stack for stack in range(num_stacks)]
    transposed = 0 if board.can_transpose else 4
    kinds = [0] * side + [transposed] * side + [1] * side + [2] * side
    kinds += [3] * num_bands + [3 + transposed] * num_stacks

    links = [(line, bands[line // board.box_rows]) for line in range(side)]
    links += [(side + line, stacks[line // board.box_cols]) for line in range(side)]
    links += [(2 * side + box, bands[box // num_stacks]) for box in range(side)]
    links += [(2 * side + box, stacks[box % num_stacks]) for box in range(side)]
    neighbours: list[list[int]] = [[] for _ in kinds]
    for one, other in links:
        neighbours[one].append(other)
        neighbours[other].append(one)
    return kinds, neighbours


if __name__ == "__main__":
    answer_draws(_Recipe)
