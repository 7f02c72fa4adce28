"""Sudoku of any size up to 35x35: boards, exact solver, generator, files and augmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tasks.puzzles.solving import Solver

__all__ = ["load"]


def __dir__() -> list[str]:
    return __all__


def load(
    name: str | Path = "extreme", *, device: str = "auto", solver: str | None = None
) -> Solver:
    """A trained model, ready to solve; see `tasks.puzzles.solving.load`.

    Args:
        name: A model that comes with the package, the folder of a run, or a checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:N".
        solver: Another registered solver than the model's.
    """
    # What only generates or reads puzzles does without torch.
    from tasks.extras import explaining

    with explaining("`tasks.sudoku.load`"):
        from tasks.puzzles.solving import load
        from tasks.sudoku.task import SudokuTask

        return load(SudokuTask(), name, device=device, solver=solver)
