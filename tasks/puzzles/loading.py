"""Find and load a model that was trained on grid puzzles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.device import choose_device
from tasks.puzzles.config import GridConfig
from tasks.puzzles.task import GridTask
from tasks.runs import averaged_model, newest_checkpoint, read_config

if TYPE_CHECKING:
    from models import GridModel


def newest_grid_checkpoint(task: GridTask[Any], side: int) -> Path:
    """The last checkpoint in `runs/` that was trained on grids of this size.

    Checkpoints of other versions, and of transformers, which have no solve, must be named.

    Raises:
        CheckpointError: There is none.
    """
    return newest_checkpoint(
        task,
        lambda config: config.spec().side == side and config.model.name != "transformer",
        f"for boards of {side * side} cells",
    )


def load_model(
    task: GridTask[Any], path: Path, *, device: str = "auto", solver: str | None = None
) -> tuple[GridModel, GridConfig]:
    """The averaged model of a checkpoint, ready for evaluation.

    Raises:
        CheckpointError: The file is not a checkpoint of this task and version.
        ValueError: Unknown device or solver.
    """
    checkpoint = Checkpoint.load(path)
    config = read_config(task, checkpoint, path)
    model = averaged_model(config, checkpoint, path)
    if model.solving is not None:
        model.solving.solver = config.solve.evaluation_solver(solver)
    return model.to(choose_device(device)).eval(), config
