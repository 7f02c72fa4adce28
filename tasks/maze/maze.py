"""N x N mazes: parsing and formatting, shortest paths, and the check of an answer.

A maze is a flat sequence of codes, row by row: 0 a wall `#`, 1 a free cell (a space), 2 the
start `S`, 3 the goal `G`; in an answer also 4, an inner cell of the path, `o`.
The rating of a maze is the number of steps of a shortest path, as in the published files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.puzzles.puzzle import Puzzle, place_in_text

if TYPE_CHECKING:
    from torch import Tensor

SYMBOLS = "# SGo"
WALL, FREE, START, GOAL, PATH = range(5)
_CODES = {symbol: code for code, symbol in enumerate(SYMBOLS)}
_NAMES = {"#": "wall", " ": "free", "S": "start", "G": "goal", "o": "path"}


class MazeError(ValueError):
    """A text that is not a maze, or an answer that is not a path through it."""


def parse(text: str, side: int | None = None) -> list[int]:
    """Read a question: `side * side` characters, with or without line ends between the rows.

    Args:
        text: Characters of `SYMBOLS` other than `o`. Spaces are never stripped.
        side: The side expected; by default any from 2.

    Raises:
        MazeError: An unknown character, rows of different lengths, a grid that is not square or
            not of the side expected, or not exactly one start and one goal.
    """
    return _parse(text, side, SYMBOLS[:PATH])


def parse_answer(text: str, side: int | None = None) -> list[int]:
    """Read an answer: as `parse`, but `o` is allowed."""
    return _parse(text, side, SYMBOLS)


def _parse(text: str, side: int | None, allowed: str) -> list[int]:
    cells = _join_rows(text)
    for position, symbol in enumerate(cells):
        if symbol not in allowed:
            known = ", ".join(f"{name!r} ({_NAMES[name]})" for name in allowed)
            raise MazeError(
                f"A maze may hold {known}: got {symbol!r} at {place_in_text(position, len(cells))}."
            )
    found = math.isqrt(len(cells))
    if found < 2 or found**2 != len(cells):
        raise MazeError(
            f"A maze must be a square: got {len(cells)} cells. Keep the spaces at the ends of its "
            "rows, they are free cells."
        )
    if side is not None and found != side:
        raise MazeError(f"Expected a maze of {side}x{side} cells, got {found}x{found}.")
    for symbol in "SG":
        if cells.count(symbol) != 1:
            name = _NAMES[symbol]
            raise MazeError(
                f"A maze must have exactly one {name} {symbol!r}, got {cells.count(symbol)}."
            )
    return [_CODES[symbol] for symbol in cells]


def _join_rows(text: str) -> str:
    """The cells without line ends, after a check that the rows form a square."""
    rows = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if len(rows) == 1:
        return rows[0]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows):
            raise MazeError(
                f"A maze of {len(rows)} rows must have {len(rows)} cells in each: row {number} has "
                f"{len(row)}. Keep the spaces at the ends of its rows, they are free cells."
            )
    return "".join(rows)


def format_line(codes: Sequence[int]) -> str:
    """One character a cell, in one line."""
    return "".join(SYMBOLS[code] for code in codes)


def format_grid(codes: Sequence[int]) -> str:
    """The maze as rows of text."""
    line, side = format_line(codes), math.isqrt(len(codes))
    return "\n".join(line[start : start + side] for start in range(0, len(line), side))


def shortest_path(codes: Sequence[int]) -> list[int]:
    """The canonical shortest path, as cells from start to goal.

    Of all shortest paths the one that a breadth-first search from the start finds, which looks
    down, left, right and up in that order and keeps the first parent of a cell. All labels of
    the published Maze-Hard sets follow this rule.

    Raises:
        MazeError: There is none.
    """
    framed, width = _framed(codes)
    start, goal = framed.index(START), framed.index(GOAL)
    parent = [0] * len(framed)
    parent[start] = start
    steps = (width, -1, 1, -width)
    queue = [start]
    for cell in queue:
        for step in steps:
            other = cell + step
            if framed[other] and not parent[other]:
                parent[other] = cell
                queue.append(other)
        if parent[goal]:
            break
    if not parent[goal]:
        raise MazeError("The goal cannot be reached from the start. Open a wall, or move one.")
    path = [goal]
    while path[-1] != start:
        path.append(parent[path[-1]])
    return [(cell // width - 1) * (width - 2) + cell % width - 1 for cell in reversed(path)]


def _framed(codes: Sequence[int]) -> tuple[list[int], int]:
    """The maze with a wall around it, so that no step leaves it, and the width of the result."""
    side = math.isqrt(len(codes))
    wall = [WALL] * (side + 2)
    rows = [[WALL, *codes[i : i + side], WALL] for i in range(0, side * side, side)]
    return [*wall, *(code for row in rows for code in row), *wall], side + 2


def label(codes: Sequence[int]) -> list[int]:
    """The answer: the maze with the canonical path in it."""
    answer = list(codes)
    for cell in shortest_path(codes)[1:-1]:
        answer[cell] = PATH
    return answer


def complete(source: str, codes: Sequence[int]) -> Puzzle:
    """Make a `Puzzle` of a question: add its answer and its rating.

    Raises:
        MazeError: The goal cannot be reached.
    """
    answer = label(codes)
    return Puzzle(source, format_line(codes), format_line(answer), answer.count(PATH) + 1)


def is_shortest(questions: Tensor, answers: Tensor) -> Tensor:
    """Whether each answer marks a shortest path, whichever it is, and changes nothing else.

    Args:
        questions: Codes, (batch, side * side).
        answers: Codes, (batch, side * side).

    Returns:
        Shape (batch,), bool.
    """
    import torch

    on_path = answers == PATH
    kept = ((answers == questions) | (on_path & (questions == FREE))).all(1)
    right = [
        good and _is_one_path(question, answer)
        for good, question, answer in zip(
            kept.tolist(), questions.tolist(), answers.tolist(), strict=True
        )
    ]
    return torch.tensor(right, dtype=torch.bool)


def _is_one_path(question: list[int], answer: list[int]) -> bool:
    """Whether the marked cells lead to the goal and are no more than a shortest path needs."""
    marked = [code if code in (START, GOAL, PATH) else WALL for code in answer]
    drawn = sum(code != WALL for code in marked)
    try:
        return len(shortest_path(marked)) == drawn == len(shortest_path(question))
    except MazeError:
        return False
