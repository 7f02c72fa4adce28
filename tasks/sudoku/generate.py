"""Make puzzles, each with exactly one solution, and split them into training and test sets.

A puzzle starts as a random full grid: the solver fills an empty board, trying digits in random
order. Every grid can come up, though not all equally often. Clues are then taken away in random
order, each one for good if the solution stays unique without it, until the puzzle has as many
as asked for, or until every clue left is necessary (a minimal puzzle).

Searches on boards larger than 9x9 may take very long, so there they have a budget of guesses. A
full grid that was not found within it is a regular pattern instead, with bands, stacks, lines and
digits in random order; a clue that could not be spared within it stays.

Puzzle number i depends on the seed and on i alone, never on how many processes share the work.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from random import Random

from tasks.puzzles import workers as shared
from tasks.puzzles.puzzle import GENERATED, Puzzle
from tasks.puzzles.workers import Recipe, answer_draws, different
from tasks.sudoku.board import Board, parse
from tasks.sudoku.solver import Engine, complete, engine_for, single_bits

GENERATOR_VERSION = 1
"""Raise it with any change that makes the same call return other puzzles: caches depend on it."""

_FEWEST_CLUES = {4: 4, 6: 8, 9: 17}  # no puzzle with fewer has a unique solution
_MAX_GRIDS = 5000  # full grids tried for one puzzle before its clue range is called hopeless
_MAX_LARGE_GRIDS = 5  # the same on a board larger than 9x9, where each takes up to seconds
_LARGEST_SEARCHED = 25  # side of a board up to which a full grid is found in some seconds
_CLUE_GUESSES = 50  # on a board larger than 9x9, to learn whether a clue can be spared


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
        # With two digits missing their places could be swapped, so `side` - 1 must be there.
        fewest, most = _FEWEST_CLUES.get(self.side, self.side - 1), self.side**2
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
        grids, guesses = _budget(board)
        for _ in range(grids):
            grid, enough = _full_grid(engine, rng), 0 if self.minimal else low
            clues = _dig(grid, engine, rng, enough, high, guesses, self.minimal)
            if clues is not None and low <= len(clues) <= high:
                return complete(GENERATED, engine.digits(sum(clues)), board)
        kind = "minimal puzzle" if self.minimal else "puzzle"
        raise ValueError(
            f"None of {grids} random grids led to a {kind} with {low} to {high} clues on a "
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
    minimal 4x4 or 6x6 puzzle less than 1 ms. One with half of its cells given takes 40 ms on a
    16x16 and 1.2 s on a 25x25 board.

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

    The training set is what `generate` returns for the same arguments. On all boards but 4x4 a
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


def _budget(board: Board) -> tuple[int, int | None]:
    """Full grids tried for one puzzle, and guesses tried for one clue."""
    return (_MAX_GRIDS, None) if board.side <= 9 else (_MAX_LARGE_GRIDS, _CLUE_GUESSES)


def _full_grid(engine: Engine, rng: Random) -> int:
    board = engine.board
    guesses = None if board.side <= 9 else 2 * board.num_cells
    if board.side <= _LARGEST_SEARCHED:
        found, _ = engine.search(*engine.start([]), limit=1, rng=rng, most_guesses=guesses)
        if found:
            return found[0]
    return sum(engine.clue_bits(shuffled_pattern(board, rng)))


def shuffled_pattern(board: Board, rng: Random) -> list[int]:
    """A random symmetric copy of the regular full grid, in which each row is shifted.

    Row r of band b is shifted by r times the columns of a box, plus b.
    """

    def lines(width: int) -> list[int]:
        """An order of rows or columns that keeps bands of so many together."""
        bands = rng.sample(range(board.side // width), board.side // width)
        return [band * width + line for band in bands for line in rng.sample(range(width), width)]

    rows, columns = lines(board.box_rows), lines(board.box_cols)
    digits = rng.sample(range(1, board.side + 1), board.side)
    shifts = [
        row % board.box_rows * board.box_cols + row // board.box_rows for row in range(board.side)
    ]
    return [digits[(shifts[row] + column) % board.side] for row in rows for column in columns]


def _dig(
    grid: int,
    engine: Engine,
    rng: Random,
    enough: int,
    most: int,
    guesses: int | None,
    minimal: bool,
) -> list[int] | None:
    """Remove clues in random order while the solution stays unique.

    A clue that could not go earlier can not go later either, so one try for each leaves a
    minimal puzzle.

    Args:
        grid: A full grid, as a state of `engine`.
        engine: The solver.
        rng: Draws the order.
        enough: Stop at this many clues.
        most: Give up as soon as more than this many are necessary.
        guesses: Of the search whether a clue is necessary; one that runs out of them stays.
        minimal: Give up instead, as it would not be known that all clues left are necessary.

    Returns:
        The clues left, or None after giving up.
    """
    waiting = list(single_bits(grid))
    rng.shuffle(waiting)
    needed: list[int] = []
    while waiting and len(needed) + len(waiting) > enough:
        clue = waiting.pop()
        is_needed = engine.is_needed(clue, needed + waiting, guesses)
        if is_needed is not False:
            needed.append(clue)
            if len(needed) > most or (is_needed is None and minimal):
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
