"""Read and write puzzle files.

Two formats, told apart by the first line:

- CSV as published with Sudoku-Extreme, with the header `source,question,answer,rating`. Blanks
  are `.` or `0` on reading and `.` on writing. An empty answer or rating is computed.
- Plain text, one puzzle a line; empty lines and lines that start with `#` are skipped. The
  answer is computed.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

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

HEADER = ["source", "question", "answer", "rating"]
_CHUNK = 8192  # rows whose answers are checked at once

_Row = tuple[int, list[str]]
"""Line number and fields, those of `HEADER` in a good row."""


def read_puzzles(
    path: str | Path,
    board: Board | None = None,
    *,
    skip_bad: bool = False,
    check_unique: bool = False,
) -> list[Puzzle]:
    """Read a CSV or plain text file of puzzles, checking every line.

    Args:
        path: The file.
        board: The board expected; by default that of the first good puzzle.
        skip_bad: Skip bad lines, with one warning that counts them, instead of refusing the file.
        check_unique: Also refuse puzzles that have another solution besides the answer given.
            Costs a search for each: 0.1 ms for easy puzzles, 3 ms for the hardest. Puzzles
            whose answer or rating is computed are checked in any case.

    Raises:
        PuzzleError: A line is bad and `skip_bad` is off, or no line is good.
        OSError: The file cannot be read.
    """
    path = Path(path)
    puzzles: list[Puzzle] = []
    bad: list[tuple[int, PuzzleError]] = []
    rows = _rows(path)
    while chunk := list(islice(rows, _CHUNK)):
        good, new_bad = _read_chunk(chunk, board, check_unique)
        if new_bad and not skip_bad:
            line, error = new_bad[0]
            raise PuzzleError(f"{path}, line {line}: {error} `--skip-bad` skips such lines.")
        puzzles += good
        bad += new_bad
        if puzzles and board is None:
            board = Board.for_length(len(puzzles[0].question))
    if bad:
        line, error = bad[0]
        warnings.warn(
            f"{path}: skipped {len(bad)} bad lines and kept {len(puzzles)}. The first bad one is "
            f"line {line}: {error}",
            stacklevel=2,
        )
    if not puzzles:
        raise PuzzleError(f"{path} holds no puzzle. Allowed: {_ALLOWED}.")
    return puzzles


_ALLOWED = f"a CSV with the header `{','.join(HEADER)}`, or plain text with one puzzle a line"


def _rows(path: Path) -> Iterator[_Row]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            if next(csv.reader([first.strip()]), None) == HEADER:
                yield from _csv_rows(file)
            elif path.suffix.lower() == ".csv":
                raise PuzzleError(
                    f"{path}, line 1: expected the header `{','.join(HEADER)}`, got "
                    f"{first.strip()[:80]!r}. Add it, or rename the file: one that does not end "
                    "in .csv may hold one puzzle a line."
                )
            else:
                yield from _text_rows(chain([first], file), source=path.name)
    except (UnicodeDecodeError, csv.Error) as error:
        raise PuzzleError(f"{path} cannot be read ({error}). Allowed: {_ALLOWED}.") from error


def _csv_rows(lines: Iterable[str]) -> Iterator[_Row]:
    reader = csv.reader(lines)
    next_line = 2
    for fields in reader:
        if fields:
            yield next_line, fields
        next_line = reader.line_num + 2


def _text_rows(lines: Iterable[str], source: str) -> Iterator[_Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            yield number, [source, line.strip(), "", ""]


def _read_chunk(
    rows: Sequence[_Row], board: Board | None, check_unique: bool
) -> tuple[list[Puzzle], list[tuple[int, PuzzleError]]]:
    """Good puzzles, and bad lines in order."""
    read: list[tuple[int, Puzzle]] = []
    bad: list[tuple[int, PuzzleError]] = []
    for line, fields in rows:
        try:
            puzzle = _read_row(fields, board, check_unique)
        except PuzzleError as error:
            bad.append((line, error))
            continue
        board = board or Board.for_length(len(puzzle.question))
        read.append((line, puzzle))
    if board is None:
        return [], bad
    valid = is_valid_solution(*to_tensors([puzzle for _, puzzle in read], board)).tolist()
    for (line, puzzle), is_valid in zip(read, valid, strict=True):
        if not is_valid:
            bad.append((line, _explain(puzzle, board)))
    good = [puzzle for (_, puzzle), is_valid in zip(read, valid, strict=True) if is_valid]
    return good, sorted(bad, key=lambda entry: entry[0])


def _read_row(fields: list[str], board: Board | None, check_unique: bool) -> Puzzle:
    """A puzzle whose answer, if the row has one, is still to be checked."""
    if len(fields) != len(HEADER):
        raise PuzzleError(
            f"A row must have the {len(HEADER)} fields {','.join(HEADER)}, got {len(fields)}."
        )
    source, question, answer, rating = fields
    if rating and not (rating.isascii() and rating.isdigit()):
        raise PuzzleError(f"`rating` must be a whole number, 0 or more, or empty: got {rating!r}.")
    # A valid answer proves that the clues agree with each other, so they need no check here.
    clues = _parse_field("question", question, board, check_clues=not answer)
    board = Board.for_length(len(clues))
    if check_unique or not answer or not rating:
        solved = complete(source, clues, board)
        answer, rating = answer or solved.answer, rating or str(solved.rating)
    digits = _parse_field("answer", answer, board, check_clues=False)
    return Puzzle(source, format_line(clues), format_line(digits), int(rating))


def _parse_field(field: str, text: str, board: Board | None, check_clues: bool) -> list[int]:
    try:
        return parse(text, board, check_clues=check_clues)
    except PuzzleError as error:
        raise PuzzleError(f"Bad {field} {text[:100]!r}. {error}") from None


def _explain(puzzle: Puzzle, board: Board) -> PuzzleError:
    """Why the answer of a puzzle is no valid solution."""
    question = parse(puzzle.question, board, check_clues=False)
    try:
        check_answer(question, parse(puzzle.answer, board, check_clues=False), board)
    except PuzzleError as error:
        return error
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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows((p.source, p.question, p.answer, p.rating) for p in puzzles)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
