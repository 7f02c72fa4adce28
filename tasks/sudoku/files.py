"""Read and write puzzle files.

Two formats, told apart by the first line:

- CSV as published with Sudoku-Extreme, with the header `source,question,answer,rating`. Blanks
  are `.` or `0` on reading and `.` on writing. An empty answer or rating is computed.
- Plain text, one puzzle a line; empty lines and lines that start with `#` are skipped. The
  answer is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tasks.puzzles.files import PuzzleFormat, write_rows
from tasks.sudoku.augment import to_tensors
from tasks.sudoku.board import (
    Board,
    Puzzle,
    PuzzleError,
    check_answer,
    format_line,
    is_valid_solution,
    parse,
)
from tasks.sudoku.solver import complete


def read_puzzles(
    path: str | Path,
    board: Board | None = None,
    *,
    skip_bad: bool = False,
) -> list[Puzzle]:
    """Read a CSV or plain text file of puzzles, checking every line.

    A search for a second solution is made only where the answer or the rating must be computed.

    Args:
        path: The file.
        board: The board expected; by default that of the first good puzzle.
        skip_bad: Skip bad lines, with one warning that counts them, instead of refusing the file.

    Raises:
        PuzzleError: A line is bad and `skip_bad` is off, or no line is good.
        OSError: The file cannot be read.
    """
    return _SudokuFormat(board).read(Path(path), skip_bad=skip_bad)


class _SudokuFormat(PuzzleFormat[Puzzle]):
    error = PuzzleError

    def __init__(self, board: Board | None):
        self.board = board

    def text_question(self, line: str) -> str:
        return "" if line.startswith("#") else line.strip()

    def read_row(self, fields: Sequence[str], first: Puzzle | None) -> Puzzle:
        source, question, answer, rating = fields
        board = self.board
        if board is None and first is not None:
            board = Board.for_length(len(first.question))
        # A valid answer proves that the clues agree with each other, so they need no check here.
        clues = _parse_field("question", question, board, check_clues=not answer)
        board = Board.for_length(len(clues))
        if not answer or not rating:
            solved = complete(source, clues, board)
            answer, rating = answer or solved.answer, rating or str(solved.rating)
        digits = _parse_field("answer", answer, board, check_clues=False)
        return Puzzle(source, format_line(clues), format_line(digits), int(rating))

    def faults(self, puzzles: Sequence[Puzzle]) -> list[str | None]:
        board = Board.for_length(len(puzzles[0].question))
        valid = is_valid_solution(*to_tensors(puzzles, board)).tolist()
        return [
            None if is_valid else _explain(puzzle, board)
            for puzzle, is_valid in zip(puzzles, valid, strict=True)
        ]


def _parse_field(field: str, text: str, board: Board | None, check_clues: bool) -> list[int]:
    try:
        return parse(text, board, check_clues=check_clues)
    except PuzzleError as error:
        raise PuzzleError(f"Bad {field} {text[:100]!r}. {error}") from None


def _explain(puzzle: Puzzle, board: Board) -> str:
    """Why the answer of a puzzle is no valid solution."""
    question = parse(puzzle.question, board, check_clues=False)
    try:
        check_answer(question, parse(puzzle.answer, board, check_clues=False), board)
    except PuzzleError as error:
        return str(error)
    raise AssertionError("`is_valid_solution` and `check_answer` disagree")


def write_puzzles(path: str | Path, puzzles: Iterable[Puzzle]) -> None:
    """Write puzzles as CSV, all or nothing: an interrupted write leaves the old file in place.

    `read_puzzles` gives the same puzzles back.

    Args:
        path: The file; its folder is created if need be.
        puzzles: The rows.

    Raises:
        OSError: The file cannot be written.
    """
    write_rows(path, puzzles)
