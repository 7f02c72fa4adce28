"""Read files of mazes.

Two formats, told apart by the first line:

- CSV as published with Maze-Hard, with the header `source,question,answer,rating`, of which
  `question` and `answer` are needed. An empty answer is computed. The rating is always computed,
  as the steps of a shortest path, since the column may hold something else, such as the cells of
  the path.
- Plain text, one maze a line, all its rows joined; empty lines are skipped, and there are no
  comments, since `#` is a wall. The answer is computed.

No field is ever stripped: a space is a free cell, at the ends of a line too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from tasks.maze.maze import (
    FREE,
    PATH,
    SYMBOLS,
    MazeError,
    format_line,
    is_shortest,
    label,
    parse,
    parse_answer,
)
from tasks.puzzles.files import PuzzleFormat
from tasks.puzzles.puzzle import Puzzle, place
from tasks.puzzles.task import to_tensors

_DIGITS = set("0123456789.")
_OTHER_TASK = "Digits and dots are no maze: this looks like another task's file."


def read_mazes(
    path: str | Path, side: int | None = None, *, skip_bad: bool = False
) -> list[Puzzle]:
    """Read a CSV or plain text file of mazes, checking every line.

    Any shortest path is accepted as an answer. Those that are not the one of `label` are counted
    in a warning: a maze has up to millions of shortest paths, so exact match with such answers
    measures how ties were broken, too.

    Args:
        path: The file.
        side: Rows, and columns, expected; by default those of the first good maze.
        skip_bad: Skip bad lines, with one warning that counts them, instead of refusing the file.

    Raises:
        MazeError: A line is bad and `skip_bad` is off, or no line is good.
        OSError: The file cannot be read.
    """
    file = _MazeFormat(side)
    mazes = file.read(Path(path), skip_bad=skip_bad)
    num_others = sum(maze in file.others for maze in mazes)
    if num_others:
        warnings.warn(
            f"{path}: {num_others} of {len(mazes)} answers are not the shortest path that our "
            "labels break ties for, but another. Exact match with them means something else: "
            "quote the share of valid shortest paths, or leave the answers empty to have them "
            "computed.",
            stacklevel=2,
        )
    return mazes


def side_of(path: str | Path) -> int | None:
    """The side of the mazes in a file; None if none of the first hundred is good.

    Raises:
        MazeError: It is no file of mazes.
        OSError: It cannot be read.
    """
    return _MazeFormat(None).side_of(Path(path))


class _MazeFormat(PuzzleFormat):
    error = MazeError
    uses_rating = False

    def __init__(self, side: int | None):
        self.side = side
        self.others: set[Puzzle] = set()  # mazes with another answer than `label`

    def text_question(self, line: str) -> str:
        return line

    def read_row(self, fields: Sequence[str], first: Puzzle | None) -> Puzzle:
        source, question, answer, _ = fields
        side = first.side if self.side is None and first else self.side
        hint = _OTHER_TASK if question and set(question) <= _DIGITS else ""
        codes = self.parse_field("question", question, lambda text: parse(text, side), hint)
        best = label(codes)
        found = best
        if answer:
            found = self.parse_field("answer", answer, lambda text: parse_answer(text, side))
        if len(found) != len(codes):
            raise MazeError(f"The question has {len(codes)} cells, the answer {len(found)}.")
        steps = best.count(PATH) + 1
        maze = Puzzle(source, format_line(codes), format_line(found), steps)
        if found != best:
            self.others.add(maze)
        return maze

    def faults(self, puzzles: Sequence[Puzzle]) -> list[str | None]:
        """See `PuzzleFormat`; an answer that equals the canonical one needs no further check."""
        suspects = [maze for maze in puzzles if maze in self.others]
        if not suspects:
            return [None] * len(puzzles)
        right = is_shortest(*to_tensors(suspects, suspects[0].side, SYMBOLS)).tolist()
        wrong = {maze for maze, is_right in zip(suspects, right, strict=True) if not is_right}
        self.others -= wrong
        return [_explain(maze) if maze in wrong else None for maze in puzzles]


def _explain(maze: Puzzle) -> str:
    """Why an answer is no shortest path of its question."""
    question, answer = parse(maze.question), parse_answer(maze.answer)
    for cell, (asked, got) in enumerate(zip(question, answer, strict=True)):
        if got != asked and (asked, got) != (FREE, PATH):
            return (
                f"The answer has {maze.answer[cell]!r} at {place(cell, maze.side)}, where the "
                f"question has {maze.question[cell]!r}."
            )
    num_cells = answer.count(PATH)
    if num_cells != maze.rating - 1:
        return (
            f"The answer is no shortest path: it has {num_cells} path cells, a shortest one "
            f"has {maze.rating - 1}."
        )
    return "The answer is no path: its cells do not join S to G."
