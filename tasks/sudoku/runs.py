"""Run folders and the models in them."""

import dataclasses
from pathlib import Path
from typing import Any

from models import GridAttractor, GridTransformer
from solvers import get_solver
from tasks.common.checkpoint import Checkpoint, CheckpointError, load_weights
from tasks.common.device import choose_device
from tasks.sudoku.config import SudokuConfig

RUNS = Path("runs") / "sudoku"
NAME = "checkpoint.safetensors"


def new_folder(wanted: Path | None, name: str) -> Path:
    """Create the folder of a run; never one that holds a checkpoint already.

    Raises:
        ValueError: The named folder holds a run, or cannot be written.
    """
    folder = wanted or RUNS / name
    number = 1
    while (folder / NAME).exists():
        if wanted is not None:
            raise ValueError(
                f"{folder} already holds a run. Go on with it by `--resume {folder / NAME}`, or "
                "name another folder with `--out`."
            )
        number += 1
        folder = RUNS / f"{name}-{number}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"The output folder {folder} cannot be written ({error.strerror}). Name another "
            "with `--out`."
        ) from error
    return folder


def newest_checkpoint(num_cells: int) -> Path:
    """The last trained checkpoint in `runs/` for boards of this size.

    Baselines, and checkpoints of other versions, must be named to be used.

    Raises:
        CheckpointError: There is none.
    """
    found = sorted(RUNS.glob(f"*/{NAME}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        try:
            config = read_config(Checkpoint.load(path), path)
        except CheckpointError:
            continue
        if config.board.num_cells == num_cells and config.model != "transformer":
            return path
    raise CheckpointError(
        f"No checkpoint for boards of {num_cells} cells under {RUNS}. Train one with `python -m "
        "tasks.sudoku`, or name one with `--checkpoint`."
    )


def read_config(checkpoint: Checkpoint, path: Path) -> SudokuConfig:
    """The configuration that a checkpoint was trained with.

    Raises:
        CheckpointError: It belongs to another task, or to another version.
    """
    if checkpoint.meta.get("task") != "sudoku":
        raise CheckpointError(
            f"{path} was trained on {checkpoint.meta.get('task')!r}, not on 'sudoku'."
        )
    values: dict[str, Any] = dict(checkpoint.meta["config"])
    values["out"] = Path(values["out"]) if values["out"] else None
    known = {field.name for field in dataclasses.fields(SudokuConfig)}
    if set(values) != known:
        raise CheckpointError(
            f"{path} comes from another version: its options differ in "
            f"{', '.join(sorted(set(values) ^ known))}. Train again."
        )
    return SudokuConfig(**values)


def load_model(
    path: Path, *, device: str = "auto", solver: str | None = None
) -> tuple[GridAttractor | GridTransformer, SudokuConfig]:
    """The averaged model of a checkpoint, ready for evaluation.

    Raises:
        CheckpointError: The file is not a Sudoku checkpoint of this version.
        ValueError: Unknown device or solver.
    """
    checkpoint = Checkpoint.load(path)
    config = read_config(checkpoint, path)
    model = config.build()
    average = checkpoint.tensors.get("average", {})
    prefix = "module."
    weights = {k.removeprefix(prefix): v for k, v in average.items() if k.startswith(prefix)}
    load_weights(model, weights, path)
    if isinstance(model, GridAttractor):
        # Evaluation may stop early whatever the training did.
        name = config.solver if solver is None else solver
        model.attractor.refiner.solver = get_solver(name, rtol=config.rtol)
    return model.to(choose_device(device)).eval(), config
