"""The maze task, as the shared commands see it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks.maze.augment import Symmetries, to_tensors
from tasks.maze.config import DEFAULT_PRESET, PRESETS, MazeConfig
from tasks.maze.files import read_mazes, write_mazes
from tasks.maze.generate import GENERATOR_VERSION, generate, identity, train_and_test
from tasks.maze.maze import PATH, Maze, format_grid, format_line, is_shortest, label, parse
from tasks.maze.pictures import animate_convergence, draw_convergence, draw_maze
from tasks.puzzles.cache import SetCache, default_directory
from tasks.puzzles.task import Frames, GridTask, Sampler


class MazeTask(GridTask[Maze, MazeConfig]):
    """Symbols and classes are the codes of `maze.SYMBOLS`."""

    name = "maze"
    config_type = MazeConfig
    presets = PRESETS
    default_preset = DEFAULT_PRESET
    noun = "maze"
    bands = (20, 30, 40, 60, 80, 100, 120, 140)
    verdict = "a shortest path"

    def make(self, config: MazeConfig) -> tuple[list[Maze], list[Maze]]:
        """See `GridTask`: made by our generator, or read if the same ones were made before."""
        data = config.data
        counts = (data.train_puzzles, data.test_puzzles)
        cache = SetCache(
            default_directory("maze"), lambda path: read_mazes(path, data.side), write_mazes
        )
        wanted: dict[str, Any] = {
            n: getattr(data, n) for n in ("side", "kind", "min_path", "max_path")
        }
        wanted["seed"] = config.train.seed
        return cache.get(
            f"{data.side}x{data.side}-{data.kind}",
            {"version": GENERATOR_VERSION, "counts": counts, **wanted},
            counts,
            lambda: train_and_test(*counts, **wanted),
        )

    def read(self, path: Path, config: MazeConfig, skip_bad: bool = False) -> list[Maze]:
        """See `files.read_mazes`."""
        return read_mazes(path, config.data.side, skip_bad=skip_bad)

    def identity(self, puzzle: Maze, config: MazeConfig) -> Any:
        """See `GridTask`: here, equal for rotations and reflections."""
        return identity(puzzle.question)

    def encode(self, puzzles: Sequence[Maze], config: MazeConfig) -> tuple[Tensor, Tensor]:
        """See `GridTask`: here, the codes of questions and answers."""
        return to_tensors(puzzles, config.data.side)

    def sampler(self, puzzles: Sequence[Maze], config: MazeConfig) -> Sampler:
        """See `GridTask`: here, rotations and reflections with their own canonical answers."""
        questions, _ = to_tensors(puzzles, config.data.side)
        symmetries = Symmetries(questions)
        return lambda rows, generator, progress: symmetries.batch(rows, generator)

    def is_valid(self, x: Tensor, classes: Tensor, config: MazeConfig) -> Tensor:
        """See `GridTask`: here, whether an answer is any shortest path."""
        return is_shortest(x, classes)

    def parse(self, text: str) -> Maze:
        """See `GridTask`: one maze, row after row, whose goal can be reached."""
        codes = parse(text)
        answer = label(codes)
        return Maze("typed", format_line(codes), format_line(answer), answer.count(PATH) + 1)

    def question(self, text: str, config: MazeConfig) -> list[int]:
        """See `GridTask`: one maze, row after row, whose goal may be out of reach."""
        return parse(text, config.data.side)

    def example(self, config: MazeConfig) -> str:
        """See `GridTask`: a maze whose path is at least as long as a side."""
        kind, side = config.data.kind, config.data.side
        return generate(1, side, kind=kind, min_path=side, seed=config.train.seed)[0].question

    def line(self, symbols: Sequence[int]) -> str:
        """See `GridTask`: here, the characters of the codes."""
        return format_line(symbols)

    def split(self, text: str) -> list[str]:
        """One maze drawn in as many lines as it has rows, or one maze a line."""
        lines = text.removesuffix("\n").split("\n")
        drawn = len(lines) > 1 and all(len(line) == len(lines) for line in lines)
        return [text] if drawn else super().split(text)

    def show(self, x: Sequence[int], classes: Sequence[int]) -> str:
        """See `GridTask`: here, the maze with the path in it."""
        return format_grid(list(classes))

    def draw(self, puzzle: Maze, frames: Frames, config: MazeConfig, folder: Path) -> list[Path]:
        """See `GridTask`: here, the answer, a sheet and an animation."""
        (question,), (answer,) = (t.tolist() for t in to_tensors([puzzle], config.data.side))
        found = frames[-1][2].argmax(-1).tolist()
        return [
            draw_maze(question, found, folder / "maze.png", truth=answer),
            draw_convergence(
                config.data.side, question, frames, answer, folder / "convergence.png"
            ),
            animate_convergence(
                config.data.side, question, frames, answer, folder / "convergence.gif"
            ),
        ]
