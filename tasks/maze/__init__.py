"""Mazes: find the shortest path that a fixed search order prefers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tasks.puzzles.solving import Solver

__all__ = ["load"]


def __dir__() -> list[str]:
    return __all__


def load(name: str | Path = "hard", *, device: str = "auto", solver: str | None = None) -> Solver:
    """A trained model, ready to solve; see `tasks.puzzles.solving.load`.

    Args:
        name: A model that comes with the package, the folder of a run, or a checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:N".
        solver: Another registered solver than the model's.
    """
    # What only generates or reads puzzles does without torch.
    from tasks.extras import explaining

    with explaining("`tasks.maze.load`"):
        from tasks.maze.task import MazeTask
        from tasks.puzzles.solving import load

        return load(MazeTask(), name, device=device, solver=solver)
