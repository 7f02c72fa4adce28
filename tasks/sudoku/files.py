"""Read files of Sudoku puzzles.

Two formats, told apart by the first line:

- CSV as published with Sudoku-Extreme, with the header `source,question,answer,rating`, of
  which `question` and `answer` are needed. Blanks are `.` or `0` on reading and `.` on writing;
  digits above 9 are letters. An empty answer or rating is computed. A rating that is no whole
  number is rounded or computed, with one warning.
- Plain text, one puzzle a line; empty lines and lines that start with `#` are skipped. The
  answer is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.puzzles.files import PuzzleFormat
from tasks.puzzles.puzzle import Puzzle
from tasks.puzzles.task import to_tensors
from tasks.sudoku.board import (
    SYMBOLS,
    Board,
    PuzzleError,
    check_answer,
    format_line,
    is_valid_solution,
    parse,
)
from tasks.sudoku.solver import complete


def read_puzzles(
    path: str | Path, board: Board | None = None, *, skip_bad: bool = False
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


def side_of(path: str | Path) -> int | None:
    """The side of the puzzles in a file; None if none of the first hundred is good.

    Raises:
        PuzzleError: It is no file of puzzles.
        OSError: It cannot be read.
    """
    return _SudokuFormat(None).side_of(Path(path))


class _SudokuFormat(PuzzleFormat):
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
        hint = _other_size(question, board, "those above are" if first else "expected are")
        # A valid answer proves that the clues agree with each other, so they need no check here.
        clues = self.parse_field(
            "question", question, lambda text: parse(text, board, check_clues=not answer), hint
        )
        board = Board.for_length(len(clues))
        if not answer or not rating:
            solved = complete(source, clues, board)
            answer, rating = answer or solved.answer, rating or str(solved.rating)
        digits = self.parse_field(
            "answer", answer, lambda text: parse(text, board, check_clues=False)
        )
        return Puzzle(source, format_line(clues), format_line(digits), int(rating))

    def faults(self, puzzles: Sequence[Puzzle]) -> list[str | None]:
        board = Board.for_length(len(puzzles[0].question))
        valid = is_valid_solution(*to_tensors(puzzles, board.side, SYMBOLS)).tolist()
        return [
            None if is_valid else _explain(puzzle, board)
            for puzzle, is_valid in zip(puzzles, valid, strict=True)
        ]


def _other_size(question: str, board: Board | None, others: str) -> str:
    """What to say of a question that is one of another board; empty if it is not."""
    size = len("".join(question.split()))
    if board is None or size == board.num_cells:
        return ""
    allowed = f"A grid must have {board.num_cells} ({board.name}) cells, got {size}"
    try:
        own = Board.for_length(size).name
    except PuzzleError:
        return ""
    return f"{allowed}: this puzzle is {own}, but {others} {board.name}. A file has one size."


def _explain(puzzle: Puzzle, board: Board) -> str:
    """Why the answer of a puzzle is no valid solution."""
    question = parse(puzzle.question, board, check_clues=False)
    try:
        check_answer(question, parse(puzzle.answer, board, check_clues=False), board)
    except PuzzleError as error:
        return str(error)
    raise AssertionError("`is_valid_solution` and `check_answer` disagree")
