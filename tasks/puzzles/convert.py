"""The command `convert`: a checkpoint of ours from a released one of TRM, HRM or EqR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.checkpoints.checkpoint import NAME, Checkpoint
from tasks.experiments.folder import new_folder
from tasks.puzzles.command_options import ConvertOptions
from tasks.puzzles.config import GridConfig
from tasks.puzzles.published_files import read
from tasks.puzzles.published_weights import MODELS, converted_checkpoint


def convert(task: Any, config: GridConfig, options: ConvertOptions) -> Path:
    """Read released weights, and write a checkpoint that `eval` and `solve` take.

    Args:
        task: A `GridTask`.
        config: That of the preset in the options.
        options: Of the command.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: The file is no such checkpoint, or one of another network.
        ValueError: The weights of this preset's network were not released.
        OSError: The checkpoint cannot be written.
    """
    if config.model.name not in MODELS:
        known = [name for name, each in task.presets.items() if each.model.name in MODELS]
        raise ValueError(
            f"{options.preset!r} is no network whose weights were released. Those are "
            f"{', '.join(known)}."
        )
    file = read(options.file)
    weights, config = converted_checkpoint(file, config, options.preset, task)
    average = {f"module.{name}": tensor for name, tensor in weights.items()}
    meta = {
        "task": task.name,
        "preset": options.preset,
        "config": config.to_json(),
        "step": file.step,
        "history": [],
    }
    with new_folder(options.out, task.name, options.preset) as lock:
        Checkpoint({"average": average}, meta).save(lock.folder / NAME)
    count, source = sum(w.numel() for w in weights.values()), file.arch_path or "the preset"
    print(f"{count:,} weights of {file.path}; cycles, heads and positions are those of {source}.")
    return lock.folder
