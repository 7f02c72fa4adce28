"""Sudokus as a user types them, which need no torch to be read."""

from __future__ import annotations

from typing import Any

from tasks.puzzles.typed import TypedPuzzles
from tasks.sudoku.board import SYMBOLS, parse


class TypedSudokus(TypedPuzzles):
    """Digits, and `.` or `0` for a blank."""

    symbols = SYMBOLS

    def question(self, text: str, config: Any = None) -> list[int]:
        """See `board.parse`: clues must not contradict each other."""
        return parse(text, config and config.data.board)

    def split(self, text: str) -> list[tuple[int, str]]:
        """See `TypedPuzzles`: lines that start with `#` are comments."""
        return [entry for entry in super().split(text) if not entry[1].startswith("#")]
