"""The maze task, as the shared commands see it.

A method imports what only training, files or pictures need when it is called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tasks.maze.config import DEFAULT_PRESET, PRESETS, MazeConfig
from tasks.maze.maze import SYMBOLS, complete, format_grid, is_shortest, parse
from tasks.puzzles.puzzle import Puzzle, smallest_copy
from tasks.puzzles.task import Frames, GridTask, Sampler

if TYPE_CHECKING:
    from tasks.puzzles.pictures import GridPicture


class MazeTask(GridTask[MazeConfig]):
    """Symbols and classes are the codes of `maze.SYMBOLS`."""

    name = "maze"
    config_type = MazeConfig
    presets = PRESETS
    default_preset = DEFAULT_PRESET
    noun = "maze"
    bands = (20, 30, 40, 60, 80, 100, 120, 140)
    verdict = "a shortest path"
    symbols = SYMBOLS
    published = (
        " The published train.csv and test.csv of Maze-Hard are at "
        "https://huggingface.co/datasets/sapientinc/maze-30x30-hard-1k."
    )

    @property
    def version(self) -> Any:
        """See `GridTask`."""
        from tasks.maze.generate import GENERATOR_VERSION

        return GENERATOR_VERSION

    def generate(self, config: MazeConfig) -> tuple[list[Puzzle], list[Puzzle]]:
        """See `generate.train_and_test`."""
        from tasks.maze.generate import train_and_test

        data = config.data
        return train_and_test(
            data.train_puzzles,
            data.test_puzzles,
            data.side,
            kind=data.kind,
            min_path=data.min_path,
            max_path=data.max_path,
            seed=config.train.seed,
        )

    def read(self, path: Path, config: MazeConfig, skip_bad: bool = False) -> list[Puzzle]:
        """See `files.read_mazes`."""
        from tasks.maze.files import read_mazes

        return read_mazes(path, config.data.side, skip_bad=skip_bad)

    def side_of(self, path: Path) -> int | None:
        """See `GridTask`."""
        from tasks.maze.files import side_of

        return side_of(path)

    def identity(self, puzzle: Puzzle, config: MazeConfig) -> Any:
        """See `GridTask`: here, equal for rotations and reflections."""
        return smallest_copy(puzzle.question)

    def sampler(self, puzzles: Sequence[Puzzle], config: MazeConfig) -> Sampler:
        """See `GridTask`: here, rotations and reflections with their own canonical answers."""
        from tasks.maze.augment import Symmetries

        symmetries = Symmetries(self.encode(puzzles, config)[0])
        return lambda rows, generator, progress: symmetries.batch(rows, generator)

    def is_valid(self, x: Tensor, classes: Tensor, config: MazeConfig) -> Tensor:
        """See `GridTask`: here, whether an answer is any shortest path."""
        return is_shortest(x, classes)

    def complete(self, source: str, question: Sequence[int]) -> Puzzle:
        """See `maze.complete`: the goal can be reached."""
        return complete(source, question)

    def question(self, text: str, config: MazeConfig | None = None) -> list[int]:
        """See `GridTask`: one maze, row after row, whose goal may be out of reach."""
        return parse(text, config and config.data.side)

    def example(self, config: MazeConfig) -> str:
        """See `GridTask`: a maze whose path is at least as long as a side."""
        from tasks.maze.generate import generate

        kind, side = config.data.kind, config.data.side
        return generate(1, side, kind=kind, min_path=side, seed=config.train.seed)[0].question

    def split(self, text: str) -> list[tuple[int, str]]:
        """One maze drawn in as many lines as it has rows, or one maze a line."""
        lines = text.removesuffix("\n").split("\n")
        drawn = len(lines) > 1 and all(len(line) == len(lines) for line in lines)
        return [(1, text)] if drawn else super().split(text)

    def show(self, x: Sequence[int], classes: Sequence[int]) -> str:
        """See `GridTask`: here, the maze with the path in it."""
        return format_grid(list(classes))

    def picture(self, x: Sequence[int], answer: Sequence[int]) -> GridPicture:
        """See `GridTask`: here, the maze and the path in it."""
        from tasks.maze.pictures import MazePicture

        return MazePicture(math.isqrt(len(x)), x, answer, self.symbols)

    def draw(self, puzzle: Puzzle, frames: Frames, config: MazeConfig, folder: Path) -> list[Path]:
        """See `GridTask`: here, also a larger sheet of fewer moments."""
        from tasks.maze.pictures import draw_maze

        (question,), (answer,) = (t.tolist() for t in self.encode([puzzle], config))
        drawn = draw_maze(frames, self.picture(question, answer), folder / "maze.png")
        return [drawn, *super().draw(puzzle, frames, config, folder)]
