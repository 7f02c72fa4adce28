"""Mazes as a user types them, which need no torch to be read."""

from __future__ import annotations

from typing import Any

from tasks.maze.maze import SYMBOLS, parse
from tasks.puzzles.typed import TypedPuzzles


class TypedMazes(TypedPuzzles):
    """The characters of `maze.SYMBOLS`."""

    noun = "maze"
    symbols = SYMBOLS

    def question(self, text: str, config: Any = None) -> list[int]:
        """See `TypedPuzzles`: one maze, row after row, whose goal may be out of reach."""
        return parse(text, config and config.data.side)

    def split(self, text: str) -> list[tuple[int, str]]:
        """One maze drawn in as many lines as it has rows, or one maze a line."""
        lines = text.removesuffix("\n").split("\n")
        drawn = len(lines) > 1 and all(len(line) == len(lines) for line in lines)
        return [(1, text)] if drawn else super().split(text)
