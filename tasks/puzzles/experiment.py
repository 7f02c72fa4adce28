"""One experiment: load puzzles, train, evaluate, draw, and store the result."""

import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.device import choose_device, compile_blocks
from tasks.planning.plan import plan
from tasks.puzzles.config import GridConfig
from tasks.puzzles.loading import load_model
from tasks.puzzles.report import SUBPLOTS, draw_run, measure, print_figures
from tasks.puzzles.task import VALIDATION_PUZZLES, Batches, GridTask
from tasks.reports.curves import plot_learning
from tasks.runs import export
from tasks.training.trainer import Interrupted, Trainer


def run_experiment(
    task: GridTask[Any, Any],
    name: str,
    config: GridConfig,
    folder: Path,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Any]:
    """Train, or continue from a checkpoint, then evaluate.

    Args:
        task: The puzzles.
        name: The preset's.
        config: The options.
        folder: Receives checkpoint, weights, log, pictures and `result.json`.
        checkpoint: Where an earlier run of the same configuration stopped.

    Returns:
        The result, as JSON values.

    Raises:
        Interrupted: By Ctrl-C or SIGTERM, in training or after it; a checkpoint is left.
    """
    began = time.monotonic()
    trainer, test_set, result = train(task, name, config, folder, checkpoint)
    if not trainer.group.first:
        return result
    result |= {
        "eval": _evaluate(task, trainer, name, test_set),
        "wall_seconds": round(time.monotonic() - began, 1),
        "config": config.to_json(),
    }
    export(trainer.path, folder / "model.safetensors")
    (folder / "result.json").write_text(json.dumps(result) + "\n")
    return result


def train(
    task: GridTask[Any, Any],
    name: str,
    config: GridConfig,
    folder: Path,
    checkpoint: Checkpoint | None = None,
    validation_puzzles: int = VALIDATION_PUZZLES,
) -> tuple[Trainer, list[Any], dict[str, Any]]:
    """Train as `run_experiment` does, without evaluating.

    Args:
        task: The puzzles.
        name: The preset's.
        config: The options.
        folder: Receives checkpoint and log.
        checkpoint: Where an earlier run stopped.
        validation_puzzles: How many held-out puzzles are used for validation during training.

    Returns:
        The trainer, the test puzzles, and what the result says of the training.
    """
    torch.manual_seed(config.seed)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    print(f"Getting {task.noun}s ...", flush=True)
    train_set, test_set = task.load(config)
    train_set = task.enlarged(train_set, config)
    overlap = _overlap(task, train_set, test_set, config)
    held_out = task.encode(test_set[:validation_puzzles], config)
    batches = Batches(task.sampler(train_set, config), len(train_set), held_out, config.eval_steps)
    trainer = _trainer(batches, task.name, name, config, folder)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(plan(config).describe())
    print(f"Training {config.model}, {parameters:,} parameters, in {folder}", flush=True)
    trainer.run()
    figures = {
        "task": task.name,
        "preset": name,
        "parameters": parameters,
        "train_steps": trainer.step,
        "train_minutes": round(trainer.seconds / 60, 2),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "test_puzzles_in_training": overlap,
    }
    return trainer, test_set, figures


def _trainer(batches: Batches, task: str, preset: str, config: GridConfig, folder: Path) -> Trainer:
    model = config.build().to(choose_device(config.device))
    if config.compile:
        compile_blocks(model)
    return Trainer(
        task=batches,
        model=model,
        config=config,
        folder=folder,
        max_steps=config.train_steps,
        meta={"task": task, "preset": preset, "config": config.to_json()},
    )


def _overlap(task: GridTask[Any, Any], train: list[Any], test: list[Any], config: Any) -> int:
    """Count test puzzles that are training puzzles; generated sets never share one."""
    if config.train_data is None and config.test_data is None:
        return 0
    count = task.overlap(train, test, config)
    if count:
        warnings.warn(
            f"{count} of {len(test)} test {task.noun}s are training {task.noun}s, perhaps in "
            "disguise: the accuracy will be too high. Use other files.",
            stacklevel=3,
        )
    return count


def _evaluate(
    task: GridTask[Any, Any], trainer: Trainer, name: str, puzzles: list[Any]
) -> dict[str, Any]:
    """Evaluate and draw a finished run; if interrupted, it can be continued from its checkpoint."""
    config: Any = trainer.config
    print("Evaluating ...", flush=True)
    try:
        model, _ = load_model(task, trainer.path, device=config.device)
        figures = measure(task, model, puzzles, config)
        plot_learning(trainer.history, trainer.folder / "learning.png", SUBPLOTS)
        if model.solving is not None and puzzles:
            draw_run(task, model, puzzles[0], figures, config, trainer.folder)
    except KeyboardInterrupt:
        raise Interrupted(trainer.path) from None
    print_figures(f"{config.model} on {len(puzzles)} held-out {task.noun}s ({name})", figures, task)
    return figures
