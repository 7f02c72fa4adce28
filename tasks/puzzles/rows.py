"""CSV text, row by row, with the number of each line.

Each row is read or refused by itself. The `csv` module of the standard library is not used: its
limit on the length of a field holds for the whole process, a quote that is never closed makes it
read the rest of the file as one field, and what it writes loses carriage returns.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from tasks.folders import draft

Line = tuple[int, str]
"""The number of a line, from 1, and its text with its end."""
Row = tuple[int, list[str] | str]
"""The number of the line in which a row begins, and its fields, or what is wrong there."""

LONGEST = 2**22  # characters of a row: one of a maze with 2048 x 2048 cells is refused

# The rest of a quoted field, up to its closing quote or the end of the line.
_INSIDE = re.compile(r'[^"]*+(?:""[^"]*+)*+')
_SPECIAL = re.compile(r'[",\r\n]')
_NOT_CLOSED = (
    "A quote opens in this line, and no other one closes it before a comma or the end of a line. "
    "Close it, or remove it; a quote within a quoted field is written twice."
)


def numbered_lines(file: TextIO) -> Iterator[Line]:
    """The lines of a file. Of one that is too long only `LONGEST` characters and one more stay.

    Args:
        file: Opened with `newline=""`, so that line ends are not translated.
    """
    number = 1
    while text := file.readline(LONGEST + 1):
        rest = text
        while len(rest) > LONGEST and rest[-1] not in "\r\n":
            rest = file.readline(LONGEST + 1)
        yield number, text
        number += 1


def csv_rows(lines: Iterator[Line]) -> Iterator[Row]:
    """The rows of CSV text; empty lines are skipped.

    After a quote that is not closed, reading continues with the line below the quote.
    """
    waiting: deque[Line] = deque()

    def following() -> Line | None:
        return waiting.popleft() if waiting else next(lines, None)

    while (line := following()) is not None:
        number, text = line
        if '"' in text:
            row, passed = _row_with_quotes(line, following)
            waiting.extendleft(reversed(passed))
            yield row
        elif text := text.rstrip("\r\n"):
            yield number, text.split(",")


def questions_of_csv(text: str, name: str) -> list[Line]:
    """The column `question` of CSV text, whatever its other columns are, with the line of each.

    Args:
        text: The content of a file.
        name: What it is called in messages.

    Raises:
        ValueError: There is no such column, or a row without it.
    """
    rows = csv_rows(numbered_lines(io.StringIO(text, newline="")))
    number, head = next(rows, (1, ""))
    if "question" not in head:
        raise ValueError(
            f"{name}, line {number}: CSV must have a column `question`, got the header {head}. "
            "Add it, or give one puzzle a line without commas."
        )
    at, found = head.index("question"), []
    for number, fields in rows:
        if isinstance(fields, str):
            raise ValueError(f"{name}, line {number}: {fields}")
        if len(fields) <= at:
            raise ValueError(
                f"{name}, line {number}: the row has {len(fields)} fields, and `question` is the "
                f"one of number {at + 1} in the header."
            )
        found.append((number, fields[at]))
    return found


def _row_with_quotes(line: Line, following: Callable[[], Line | None]) -> tuple[Row, list[Line]]:
    """The row that begins in a line, and the lines below a quote that is not closed."""
    (number, text), at, fields = line, 0, []
    while True:
        if text.startswith('"', at):
            opened, parts, passed = number, [], []
            at, size = at + 1, 0
            while (end := _INSIDE.match(text, at).end()) == len(text):  # type: ignore[union-attr]
                parts.append(text[at:])
                size += len(text)
                below = following() if size <= LONGEST else None
                if below is None:
                    return (opened, _NOT_CLOSED), passed
                passed.append(below)
                (number, text), at = below, 0
            parts.append(text[at:end])
            field, at = "".join(parts).replace('""', '"'), end + 1
            if text[at : at + 1] not in ("", ",", "\r", "\n"):
                return (opened, _NOT_CLOSED), passed
        else:
            end = text.find(",", at)
            end = len(text.rstrip("\r\n")) if end < 0 else end
            field, at = text[at:end], end
        fields.append(field)
        if text[at : at + 1] != ",":
            return (line[0], fields), []
        at += 1


def write_csv(path: Path, rows: Iterable[Iterable[str]]) -> None:
    """Write rows so that `csv_rows` gives them back, whatever characters their fields hold."""
    with replacing(path) as file:
        for row in rows:
            file.write(",".join(map(_quoted, row)) + "\n")


def _quoted(field: str) -> str:
    if not _SPECIAL.search(field):
        return field
    return '"' + field.replace('"', '""') + '"'


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file to write, which replaces `path` in one step when it is whole and on the disk.

    Its folder is created if need be.

    See `tasks.folders.draft` for what an exception or a kill leaves.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
