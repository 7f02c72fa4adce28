"""Puzzles as a user types them for a command, which need no torch to be read."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tasks.puzzles.puzzle import place_in_text

R = TypeVar("R")

# How the name of a file ends or a path begins, and no puzzle.
FILE_NAME = re.compile(r"\.[A-Za-z]\w{1,5}$|[/\\]")


class TypedPuzzles:
    """How the questions of one kind of puzzle are typed.

    The methods suit questions that are written with one character a cell, white space aside.

    Attributes:
        noun: What one puzzle is called in messages.
        symbols: The character of each symbol in order.
    """

    noun: ClassVar[str] = "puzzle"
    symbols: ClassVar[str]

    def question(self, text: str, config: Any = None) -> list[int]:
        """The symbols of a question of the size that `config` names; by default of any size.

        Unlike `parse` it searches for no answer, so that the cost is small for any text.

        Raises:
            ValueError: The text is no question of this size.
        """
        cells = "".join(text.split())
        for cell, symbol in enumerate(cells):
            if symbol not in self.symbols:
                raise ValueError(
                    f"A {self.noun} may hold the characters {' '.join(self.symbols)}, one a cell: "
                    f"got {symbol!r} at {place_in_text(cell, len(cells))}."
                )
        side = math.isqrt(len(cells)) if config is None else config.spec().side
        if not cells or len(cells) != side**2:
            size = "the cells of a square" if config is None else f"{side**2} cells"
            raise ValueError(f"A {self.noun} must have {size}, got {len(cells)}.")
        return [self.symbols.index(cell) for cell in cells]

    def split(self, text: str) -> list[tuple[int, str]]:
        """The questions in the text of a file, here one a line, with the number of the line."""
        lines = enumerate(text.split("\n"), 1)
        return [(number, line) for number, line in lines if line.strip()]

    def typed(self, text: str) -> list[tuple[str, str]]:
        """The questions that an argument of the command line names.

        Args:
            text: A question, the name of a file, or "-" for the standard input. A file has one
                question a line, or is CSV with a column `question`.

        Returns:
            Each with where it stands, as "puzzles.txt, line 3: "; "" for one that was typed.
        """
        path, is_file = Path(text), _is_file(text)
        if is_file and path.suffix == ".safetensors":
            raise ValueError(
                f"{text} is a model, which `--checkpoint` names: here belongs a {self.noun}, or a "
                f"file of {self.noun}s."
            )
        if text != "-" and not is_file:
            if FILE_NAME.search(text) and "\n" not in text:
                what = "a folder" if path.is_dir() else "no such file"
                raise ValueError(
                    f"{text!r:.200} is {what}. Name a file with one {self.noun} a line, or "
                    f"type the {self.noun} itself."
                )
            return [("", text)]
        name = "standard input" if text == "-" else str(path)
        try:
            content = sys.stdin.read() if text == "-" else path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name} is not UTF-8 text ({error}). Convert it, or name a file with one "
                f"{self.noun} a line."
            ) from error
        content = content.removeprefix("\ufeff")
        first = content.split("\n", 1)[0]
        if ("," in first and not first.startswith("#")) or first.strip(' "\r') == "question":
            from tasks.puzzles.rows import questions_of_csv

            found = questions_of_csv(content, name)
        else:
            found = self.split(content)
        return [(f"{name}, line {number}: ", question) for number, question in found]

    def read_typed(self, text: str, read: Callable[[str], R]) -> list[R]:
        """What `read` makes of each puzzle that an argument names; see `typed`.

        Raises:
            ValueError: `read` refuses one; of a file, the message says which line.
        """
        found = []
        for where, question in self.typed(text):
            try:
                found.append(read(question))
            except ValueError as error:
                if where:
                    raise ValueError(f"{where}{error}") from error
                if text.isalpha():  # rather a name than a puzzle
                    raise ValueError(f"{error} There is no file {text!r}, either.") from error
                raise
        return found

    def require_typed(self, texts: Sequence[str]) -> None:
        """Check the arguments that name puzzles, as far as that takes no time and reads no file.

        Raises:
            ValueError: There is none, or one is no question.
        """
        if not texts:
            raise ValueError(self.none_named(""))
        for text in texts:
            if text != "-" and not _is_file(text):
                self.read_typed(text, self.question)

    def none_named(self, where: str) -> str:
        """The message where there is no puzzle, `where` being empty or such as " in 'a.txt'"."""
        return f"There is no {self.noun}{where}. Name one, or a file with one per line."


def _is_file(text: str) -> bool:
    """Whether a text names a file; pipes of a shell are files as well."""
    short = "\n" not in text and len(text) < 200
    return short and Path(text).exists() and not Path(text).is_dir()
