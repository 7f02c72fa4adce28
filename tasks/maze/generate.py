"""Make mazes: random walls with a far goal, or perfect mazes with exactly one path.

"hard", the kind of Maze-Hard: the number of walls is uniform in 30 to 50 % of the cells and
their places are random; start and goal are uniform among the free cells; a draw is kept if its
shortest path has a length in the range asked for. One draw in 55,000 survives at 30x30 and 110
cells, so walls are drawn alone, kept with a chance in proportion to the share of their pairs
of cells that are far enough apart, and given one of those pairs: the same distribution, but
for two details. Large shares, above 1.5 / side, all count as that; and whether there is a pair
at all is asked of a double sweep, the farthest cell from the farthest cell from a random one,
which can overlook a pair that is barely far enough.

"unique", the kind of Maze-Unique: a random depth-first spanning tree of a lattice of rooms, so
that any two cells have one path. Depth-first, since its trees have the long paths asked for.
The path's length is drawn first, uniformly, then a tree and two cells that have it.

Maze number i depends on the seed and on i alone.

References:
    HRM, arXiv:2506.21734, sec. 3 (Maze-Hard); EqR, arXiv:2605.21488, app. (Maze-Unique).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from tasks.maze.maze import FREE, GOAL, START, WALL, complete
from tasks.puzzles.puzzle import GENERATED, Puzzle, smallest_copy
from tasks.puzzles.workers import Recipe, answer_draws, draw_all

GENERATOR_VERSION = 1
"""Raise it with any change that makes the same call return other mazes: caches depend on it."""

KINDS = ("hard", "unique")
_MAX_DRAWS = 1_000_000  # for one maze, before its settings are called hopeless
_WALL_SHARE = (0.3, 0.5)
_LARGE_SHARE = 1.5  # over the side
_SHARE_BITS = 8
_SHARE_STEPS = 1 << _SHARE_BITS


def generate(
    count: int,
    side: int,
    *,
    kind: str = "hard",
    min_path: int,
    max_path: int | None = None,
    seed: int = 0,
    start_index: int = 0,
    workers: int | None = None,
) -> list[Puzzle]:
    """Make mazes.

    Args:
        count: How many.
        side: Cells of a row, from 3. A perfect maze with an even side has a wall at its right
            and lower edge.
        kind: "hard" or "unique"; see the module's first lines.
        min_path: Fewest cells of a shortest path, start and goal included.
        max_path: Most; by default any.
        seed: Of everything.
        start_index: Number of the first maze.
        workers: Processes to share the work, by default one per CPU core; few mazes are made
            by one.

    Raises:
        ValueError: An argument is out of range, or no maze like that can be found.
    """
    _check(count, side, kind, min_path, max_path)
    recipe = _Recipe(side, kind, min_path, max_path or side * side, seed)
    return draw_all(recipe, range(start_index, start_index + count), workers)


@dataclass(frozen=True)
class _Recipe(Recipe):
    fewest_per_worker: ClassVar[int] = 20

    side: int
    kind: str
    low: int
    high: int
    seed: int

    def draw(self, index: int) -> Puzzle:
        """See `Recipe`."""
        side, kind, low, high = self.side, self.kind, self.low, self.high
        random = Random(f"maze/{kind}/{self.seed}/{index}")
        draw: Callable[[], tuple[int, int, int] | None]
        if kind == "hard":
            draw = functools.partial(_draw_hard, side, low, high, random)
        else:
            draw = functools.partial(_draw_unique, side, random.randint(low, high), random)
        for _ in range(_MAX_DRAWS):
            found = draw()
            if found is not None:
                return _finish(side, *found)
        raise ValueError(
            f"No {kind} maze of {side}x{side} cells with a path of {low} to {high} cells in "
            f"{_MAX_DRAWS:,} draws. Ask for shorter paths, or a larger side."
        )


def train_and_test(
    train_count: int,
    test_count: int,
    side: int,
    *,
    kind: str = "hard",
    min_path: int,
    max_path: int | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> tuple[list[Puzzle], list[Puzzle]]:
    """Make two sets that share no maze, not even a rotated or reflected one.

    Args and errors are those of `generate`; the training set is what it returns.
    """
    options: dict[str, Any] = {"kind": kind, "min_path": min_path, "max_path": max_path}
    make = functools.partial(generate, side=side, seed=seed, workers=workers, **options)
    train = make(train_count)
    taken = {smallest_copy(maze.question) for maze in train}
    test: list[Puzzle] = []
    index = train_count
    while len(test) < test_count:
        missing = test_count - len(test)
        more = make(missing, start_index=index)
        test += [maze for maze in more if smallest_copy(maze.question) not in taken]
        index += missing
    return train, test


def _check(count: int, side: int, kind: str, min_path: int, max_path: int | None) -> None:
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}.")
    if count < 0 or side < 3:
        raise ValueError(
            f"`count` must be 0 or more and `side` must be at least 3: got {count}, {side}."
        )
    if not 2 <= min_path <= (max_path or min_path) <= side * side:
        raise ValueError(
            f"`min_path` and `max_path` must satisfy 2 <= min <= max <= {side * side} for a side "
            f"of {side}: got {min_path} and {max_path}."
        )


def _finish(side: int, free: int, start: int, goal: int) -> Puzzle:
    codes = [FREE if free >> _bit(cell, side) & 1 else WALL for cell in range(side * side)]
    codes[_cell(start, side)], codes[_cell(goal, side)] = START, GOAL
    return complete(GENERATED, codes)


# Sets of cells are integers with one bit a cell, rows `side` + 1 bits apart, so that a step to
# the left or right never leads into another row: a whole front of a search moves at once.


def _bit(cell: int, side: int) -> int:
    return cell // side * (side + 1) + cell % side


def _cell(bit: int, side: int) -> int:
    return bit // (side + 1) * side + bit % (side + 1)


def _fronts(free: int, start: int, side: int) -> Iterator[int]:
    """Cells at distance 0, 1, 2, ... from the start."""
    front, rest, width = 1 << start, free & ~(1 << start), side + 1
    while front:
        yield front
        front = (front << 1 | front >> 1 | front << width | front >> width) & rest
        rest ^= front


def _pick(cells: int, random: Random) -> int:
    """A uniformly chosen bit of a set that is not empty."""
    length = cells.bit_length()
    while True:
        bit = random.randrange(length)
        if cells >> bit & 1:
            return bit


def _draw_hard(side: int, low: int, high: int, random: Random) -> tuple[int, int, int] | None:
    """Walls, and a pair of free cells that are far enough apart; None if there is none."""
    free = _draw_free(side, random)
    if not any(_looks_long(part, low, side, random) for part in _parts(free, side)):
        return None
    pairs = list(_pairs(free, low, high, side))
    weights = [goals.bit_count() for _, goals in pairs]
    num_free = free.bit_count()
    share = sum(weights) / (num_free * (num_free - 1))
    if random.random() * _LARGE_SHARE / side >= share:
        return None
    start, goals = random.choices(pairs, weights)[0]
    return free, start, _pick(goals, random)


def _draw_free(side: int, random: Random) -> int:
    """Free cells: their number uniform in a range, their places random.

    Cells are free independently with the wanted share, which takes a few operations on whole
    integers, and then as many are added or removed at random as are wrong.
    """
    num_cells = side * side
    least, most = (int(share * num_cells) for share in _WALL_SHARE)
    wanted = num_cells - random.randint(least, most)
    every = sum(((1 << side) - 1) << row * (side + 1) for row in range(side))
    share, free = round(wanted / num_cells * _SHARE_STEPS), 0
    for digit in range(_SHARE_BITS):  # binary digits of the share, the lowest first
        bits = random.getrandbits(every.bit_length())
        free = free | bits if share >> digit & 1 else free & bits
    free &= every
    while (excess := free.bit_count() - wanted) > 0:
        free ^= 1 << _pick(free, random)
    for _ in range(-excess):
        free |= 1 << _pick(every & ~free, random)
    return free


def _parts(free: int, side: int) -> Iterator[int]:
    """The connected parts of the free cells."""
    while free:
        part = sum(_fronts(free, (free & -free).bit_length() - 1, side))
        yield part
        free ^= part


def _looks_long(part: int, low: int, side: int, random: Random) -> bool:
    """Whether a double sweep of a connected part finds a path of `low` cells."""
    if part.bit_count() < low:
        return False
    fronts = list(_fronts(part, _pick(part, random), side))
    if 2 * len(fronts) - 1 < low:  # no two cells are farther apart than twice that
        return False
    return sum(1 for _ in _fronts(part, _pick(fronts[-1], random), side)) >= low


def _pairs(free: int, low: int, high: int, side: int) -> Iterator[tuple[int, int]]:
    """Each start that has goals with a path of `low` to `high` cells, and the set of those."""
    for start in range(free.bit_length()):
        if free >> start & 1:
            fronts = enumerate(_fronts(free, start, side), start=1)
            goals = sum(front for cells, front in fronts if low <= cells <= high)
            if goals:
                yield start, goals


def _draw_unique(side: int, length: int, random: Random) -> tuple[int, int, int] | None:
    """A perfect maze, and a pair of cells with a path of just this length; None if it has none."""
    free = _spanning_tree(side, random)
    start = _pick(free, random)
    for cells, front in enumerate(_fronts(free, start, side), start=1):
        if cells == length:
            return free, start, _pick(front, random)
    return None


def _spanning_tree(side: int, random: Random) -> int:
    """Rooms at even rows and columns, joined by a random depth-first search."""
    rooms = range(0, side, 2)
    room = (random.choice(rooms), random.choice(rooms))
    seen, stack = {room}, [room]
    free = 1 << _bit(room[0] * side + room[1], side)
    while stack:
        row, column = stack[-1]
        beside = [(row - 2, column), (row + 2, column), (row, column - 2), (row, column + 2)]
        new = [r for r in beside if r not in seen and r[0] in rooms and r[1] in rooms]
        if not new:
            stack.pop()
            continue
        other = random.choice(new)
        seen.add(other)
        stack.append(other)
        between = (row + other[0]) // 2 * side + (column + other[1]) // 2
        free |= 1 << _bit(between, side) | 1 << _bit(other[0] * side + other[1], side)
    return free


if __name__ == "__main__":
    answer_draws(_Recipe)
