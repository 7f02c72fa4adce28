"""Reading and writing files of grid puzzles, with errors that name the line.

Two formats, told apart by the first line: CSV with a header, of which the columns `question` and
`answer` are needed, `source` and `rating` are read if they are there, and others are not; and plain
text with one puzzle a line. What a field means is for the task to say.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

from tasks.puzzles.puzzle import Puzzle
from tasks.puzzles.rows import LONGEST, Line, Row, csv_rows, numbered_lines, write_csv

HEADER = ["source", "question", "answer", "rating"]
_NEEDED = ["question", "answer"]
_ALLOWED = "a CSV with the columns `question` and `answer`, or plain text with one puzzle a line"
_CHUNK = 8192  # rows whose answers are checked at once
_LOOKED_AT = 100  # rows in which the size of a file's puzzles is looked for
_SHOWN = 3  # bad lines whose complaint is shown; the others are counted
_RATING_DIGITS = 18  # so that a rating fits into 64 bits

_Bad = tuple[int, str]
"""Line number and what is wrong there."""


class PuzzleFormat(ABC):
    """How one kind of puzzle is read; each object reads one file.

    Attributes:
        error: The class of all complaints about what a file holds.
        uses_rating: Whether the ratings of a file are kept.
        odd_ratings: How many of them were no whole numbers from 0 on.
    """

    error: ClassVar[type[ValueError]]
    uses_rating: ClassVar[bool] = True
    odd_ratings: int = 0

    @abstractmethod
    def text_question(self, line: str) -> str:
        """The question in a line of plain text without its line end; empty skips the line."""

    @abstractmethod
    def read_row(self, fields: Sequence[str], first: Puzzle | None) -> Puzzle:
        """Read the puzzle of a row; if the row has an answer, `faults` checks it later.

        Args:
            fields: The columns of `HEADER` as in the file; the source is the file's name where it
                has none, the rating is digits, or empty where there is none that can be used.
            first: A good row above this one, None if there is none.

        Raises:
            ValueError: The row is bad; of the class `error`.
        """

    @abstractmethod
    def faults(self, puzzles: Sequence[Puzzle]) -> list[str | None]:
        """What is wrong with the answer of each puzzle, or None; faster for many at once."""

    def parse_field(
        self, name: str, text: str, parse: Callable[[str], list[int]], hint: str = ""
    ) -> list[int]:
        """Parse a field, with an error that quotes it.

        Args:
            name: Of the column.
            text: The field.
            parse: Returns the symbols of a text, or raises `error`.
            hint: Said instead of what `parse` found wrong.
        """
        try:
            return parse(text)
        except self.error as error:
            raise self.error(f"Bad {name} {text[:100]!r}. {hint or error}") from None

    def read(self, path: Path, *, skip_bad: bool) -> list[Puzzle]:
        """Read a file, checking every line.

        Args:
            path: The file.
            skip_bad: Skip bad lines, with one warning that counts them and shows the first
                ones, instead of refusing the file.

        Raises:
            ValueError: A line is bad and `skip_bad` is off, or no line is good; of the class
                `error`.
            OSError: The file cannot be read.
        """
        self.odd_ratings = 0
        puzzles: list[Puzzle] = []
        shown: list[_Bad] = []
        num_bad = 0
        rows = self._rows(path)
        while chunk := list(islice(rows, _CHUNK)):
            good, bad = self._read_chunk(chunk, puzzles[0] if puzzles else None)
            if bad and not skip_bad:
                line, error = bad[0]
                raise self.error(f"{path}, line {line}: {error} `--skip-bad` skips such lines.")
            puzzles += good
            num_bad += len(bad)
            shown += bad[: _SHOWN - len(shown)]
        if num_bad:
            first = " ".join(f"line {line}: {error}" for line, error in shown)
            warnings.warn(
                f"{path}: skipped {num_bad} bad lines and kept {len(puzzles)}. "
                f"{'The first ones' if num_bad > _SHOWN else 'What is wrong'}: {first}",
                stacklevel=3,  # the caller of the task's function
            )
        if self.odd_ratings:
            warnings.warn(
                f"{path}: {self.odd_ratings} of the values of `rating` are not whole numbers of 0 "
                f"or more, of at most {_RATING_DIGITS} digits. Other numbers were rounded, and "
                "everything else was replaced by our own rating.",
                stacklevel=3,
            )
        if not puzzles:
            raise self.error(f"{path} holds no puzzle. Allowed: {_ALLOWED}.")
        return puzzles

    def _rows(self, path: Path) -> Iterator[Row]:
        if path.is_dir():
            raise self.error(f"{path} is a folder. Name a file of puzzles: {_ALLOWED}.")
        if path.is_file() and not path.stat().st_size:
            raise self.error(f"{path} holds no puzzle. Allowed: {_ALLOWED}.")
        # Bytes that are not UTF-8 become surrogates, which `_complaint` finds in their line.
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = numbered_lines(file)
            first = next(lines, (1, ""))
            head = first[1].strip()
            (_, names) = next(csv_rows(iter([(1, head)])), (1, ""))
            if names == HEADER:
                yield from csv_rows(lines)
            elif set(_NEEDED) <= set(names):
                yield from self._csv_rows(lines, list(names), path)
            elif path.suffix.lower() != ".csv" and "question" not in names:
                yield from self._text_rows(chain([first], lines), path)
            elif undecodable := _undecodable(head):
                raise self.error(f"{path} cannot be read ({undecodable}). Allowed: {_ALLOWED}.")
            else:
                missing = " and ".join(f"`{name}`" for name in _NEEDED if name not in names)
                raise self.error(
                    f"{path}, line 1: the header lacks {missing}: got {head[:80]!r}. "
                    f"Allowed are {','.join(HEADER)}, of which `source` and `rating` may be left "
                    "out. Add what is missing, or rename the file: one that does not end in .csv "
                    "may hold one puzzle a line."
                )

    def _csv_rows(self, lines: Iterator[Line], names: list[str], path: Path) -> Iterator[Row]:
        """The rows of a CSV with these columns, in the order of `HEADER`."""
        otherwise = {"source": _name(path)}
        for number, fields in csv_rows(lines):
            if isinstance(fields, str):
                yield number, fields
            elif len(fields) != len(names):
                yield number, self._complaint(fields) or _wrong_count(names, len(fields))
            else:
                known = otherwise | dict(zip(names, fields, strict=True))
                yield number, [known.get(name, "") for name in HEADER]

    def _text_rows(self, lines: Iterable[Line], path: Path) -> Iterator[Row]:
        source = _name(path)
        for number, line in lines:
            if question := self.text_question(line.rstrip("\r\n")):
                yield number, [source, question, "", ""]

    def _read_chunk(
        self, rows: Sequence[Row], first: Puzzle | None
    ) -> tuple[list[Puzzle], list[_Bad]]:
        """The good puzzles of these rows, and the bad lines in order."""
        read: list[tuple[int, Puzzle]] = []
        # Complaints as text: an exception keeps its traceback alive, which is much larger.
        bad: list[_Bad] = []
        for line, fields in rows:
            try:
                if isinstance(fields, str):
                    raise self.error(fields)
                if complaint := self._complaint(fields):
                    raise self.error(complaint)
                if len(fields) != len(HEADER):
                    raise self.error(_wrong_count(HEADER, len(fields)))
                puzzle = self.read_row([*fields[:-1], self._rating(fields[-1])], first)
            except self.error as error:
                bad.append((line, str(error)))
                continue
            first = first or puzzle
            read.append((line, puzzle))
        good = []
        faults = self.faults([puzzle for _, puzzle in read]) if read else []
        for (line, puzzle), fault in zip(read, faults, strict=True):
            if fault is None:
                good.append(puzzle)
            else:
                bad.append((line, fault))
        return good, sorted(bad, key=lambda entry: entry[0])

    def _complaint(self, fields: Sequence[str]) -> str | None:
        """What is wrong with the text of a row, if anything."""
        if sum(map(len, fields)) >= LONGEST:
            return (
                f"A row must be shorter than {LONGEST:,} characters, which is the question of a "
                "grid of 2048x2048 cells."
            )
        if undecodable := _undecodable("".join(fields)):
            return f"The line is not UTF-8 text ({undecodable})."
        return None

    def _rating(self, text: str) -> str:
        """The rating of a row as digits; empty for one that is not kept or no such number.

        Whoever made a file had a scale of their own, so no rating is a reason to refuse a puzzle.
        """
        if not text or not self.uses_rating:
            return ""
        if text.isascii() and text.isdigit() and len(text) <= _RATING_DIGITS:
            return text
        self.odd_ratings += 1
        try:
            number = float(text)
        except ValueError:
            return ""
        return str(round(number)) if 0 <= number < 10**_RATING_DIGITS else ""

    def side_of(self, path: Path) -> int | None:
        """The side of the first good puzzle among the first rows of a file; None if none is good.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is of neither format; of the class `error`.
        """
        for row in islice(self._rows(path), _LOOKED_AT):
            good, _ = self._read_chunk([row], None)
            if good:
                return good[0].side
        return None


def _wrong_count(names: Sequence[str], count: int) -> str:
    return f"A row must have the {len(names)} fields {','.join(names)}, got {count}."


def _name(path: Path) -> str:
    """The name of a file as text, whatever bytes it is of."""
    return os.fsencode(path.name).decode(errors="replace")


def _undecodable(text: str) -> UnicodeDecodeError | None:
    """Why a text is not UTF-8, if it was read with `errors="surrogateescape"`."""
    if not text.isascii():
        try:
            text.encode(errors="surrogateescape").decode()
        except UnicodeDecodeError as error:
            return error
    return None


class TaskFormat(PuzzleFormat):
    """Files of a task's puzzles whose rules are those of `is_valid`."""

    error = ValueError

    def __init__(self, task: Any, config: Any) -> None:
        self.task, self.config = task, config

    def text_question(self, line: str) -> str:
        """See `PuzzleFormat`."""
        return line.strip()

    def read_row(self, fields: Sequence[str], first: Puzzle | None) -> Puzzle:
        """See `PuzzleFormat`."""
        source, question, answer, rating = fields
        symbols = self.parse_field("question", question, self._parse)
        if not answer or not rating:
            solved = self.task.complete(source, symbols)
            answer, rating = answer or solved.answer, rating or str(solved.rating)
        answer = self.task.line(self.parse_field("answer", answer, self._parse))
        return Puzzle(source, self.task.line(symbols), answer, int(rating))

    def _parse(self, text: str) -> list[int]:
        return self.task.question(text, self.config)

    def faults(self, puzzles: Sequence[Puzzle]) -> list[str | None]:
        """See `PuzzleFormat`."""
        valid = self.task.is_valid(*self.task.encode(puzzles, self.config), self.config)
        wrong = f"The answer is not {self.task.verdict} of the question."
        return [None if is_valid else wrong for is_valid in valid.tolist()]


def write_puzzles(path: str | Path, puzzles: Iterable[Puzzle]) -> None:
    """Write puzzles as CSV, all or nothing: an interrupted write leaves the old file in place.

    The folder is created if need be.

    Raises:
        OSError: The file cannot be written.
    """
    rows = ((p.source, p.question, p.answer, str(p.rating)) for p in puzzles)
    write_csv(Path(path), chain([HEADER], rows))
