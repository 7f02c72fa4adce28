"""Training steps, evaluation and generation of every task on both devices; see `on_both`."""

import contextlib
import functools
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from on_both import same
from torch.utils import _pytree as pytree

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.lm.config import LanguageConfig
from tasks.lm.data import Batches, Corpus
from tasks.lm.generate import Sampling, generate
from tasks.lm.tokenizer import train_tokenizer
from tasks.maze.config import MazeConfig
from tasks.maze.task import MazeTask
from tasks.puzzles.evaluate import evaluate, step_curve, trajectory
from tasks.puzzles.experiment import Batches as GridBatches
from tasks.serving.engine import Engine
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.task import SudokuTask
from tasks.training.trainer import Trainer

COMMON: dict[str, Any] = {"steps": 3, "batch_size": 4, "warmup": 1, "rtol": 1e-3}
PUZZLES: dict[str, Any] = {
    **COMMON, "width": 8, "segments": 2, "refill": True, "train_max_steps": 4, "train_puzzles": 8,
    "test_puzzles": 4,
}  # fmt: skip
SUDOKU: dict[str, Any] = {**PUZZLES, "side": 4, "min_clues": 6, "max_clues": 8}
TEXT: dict[str, Any] = {
    **COMMON, "vocabulary": 257, "context": 16, "width": 16, "num_heads": 2, "eval_tokens": 64,
    "backbone_blocks": 1, "train_max_steps": 4, "optimizer": "adamw",
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "sudoku": SudokuConfig.of(**SUDOKU),
    "maze": MazeConfig.of(**PUZZLES, side=7, min_path=8),
    "lm": LanguageConfig.of(**TEXT),
    "sudoku from noise": SudokuConfig.of(**SUDOKU, start_noise=0.1),
    "sudoku by a reasoner that halts": SudokuConfig.of(
        **SUDOKU, model="reasoner", halting="q-learning", loss="stablemax", accumulate=2
    ),
    "sudoku by muon": SudokuConfig.of(**SUDOKU, optimizer="muon"),
    "lm by parcae": LanguageConfig.of(**TEXT).changed(model="parcae"),
    "lm with exact gradients": LanguageConfig.of(**TEXT, backward="exact"),
}
# Off the CPU, Muon iterates in bfloat16.
SLACK = {"sudoku by muon": 1e7}


def _trainer(config: Any, folder: Path, device: torch.device) -> Trainer:
    if isinstance(config, LanguageConfig):
        tokens = torch.randint(60, 120, (400,), generator=torch.Generator().manual_seed(1))
        batches: Any = Batches(Corpus(train_tokenizer([], 257), tokens, tokens[:80]), config)
        steps = config.solve.train_steps
    else:
        task: Any = SudokuTask() if isinstance(config, SudokuConfig) else MazeTask()
        puzzles, held_out = task.make(config)
        shown = task.encode(held_out, config)
        batches = GridBatches(task.sampler(puzzles, config), len(puzzles), shown, max_steps=4)
        steps = config.train_steps
    torch.manual_seed(0)
    model = config.build().double().to(device)
    torch.manual_seed(1)
    return Trainer(batches, model, config, folder, max_steps=steps, meta={})


def _figures(rows: Any, device: torch.device) -> Any:
    """Numbers that are compared as closely as tensors are."""
    return pytree.tree_map(
        lambda leaf: torch.tensor(leaf, dtype=torch.float64, device=device), rows
    )


def _step(name: str, device: torch.device) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(CONFIGS[name], Path(folder), device)
        figures = _figures(trainer._train_segment(), device)
    found = {"trained": trainer.model, "averaged": trainer.average.module}
    return figures, {key: dict(model.named_parameters()) for key, model in found.items()}


def step(name: str) -> None:
    """One training step."""
    same(functools.partial(_step, name), SLACK.get(name, 1.0))


def _run(name: str, device: torch.device) -> Any:
    config = CONFIGS[name]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = _trainer(config, Path(folder), device)
        inner = trainer._train_segment

        def segment() -> dict[str, float]:
            if trainer.step == 2:
                trainer.save()
                trainer.manager.finish()
                (trainer.path).rename(trainer.path.with_name("two.safetensors"))
            return inner()

        trainer._train_segment = segment  # type: ignore[method-assign]
        averaged = trainer.run()
        again = _trainer(config, Path(folder), device)
        again.restore(Checkpoint.load(trainer.path.with_name("two.safetensors")))
        resumed = again.run()
    assert again.device == trainer.device == device
    for value, other in zip(averaged.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(value, other), "a resumed run goes another way"
    rows = [{key: row[key] for key in row if key != "minutes"} for row in trainer.history.rows]
    return _figures(rows, device), dict(averaged.named_parameters())


def run(name: str) -> None:
    """A run that validates; it is saved on the way, and what goes on from there ends the same."""
    # Maps that are hardly trained need not contract.
    warnings.filterwarnings("ignore", "Step .. the map does not contract")
    same(functools.partial(_run, name), SLACK.get(name, 1.0))


def _evaluation(name: str, device: torch.device) -> Any:
    config = CONFIGS[name]
    task: Any = SudokuTask() if isinstance(config, SudokuConfig) else MazeTask()
    x, target = task.encode(task.make(config)[1], config)
    torch.manual_seed(0)
    model = config.build().double().to(device).eval()
    figures, predictions = evaluate(model, x, target, max_steps=6)
    curve = step_curve(model, x, target, max_steps=4)
    path = [(number, residual) for number, residual, _ in trajectory(model, x[0], 4)]
    engine = Engine(model, 6, max_batch=2, max_waiting=8)
    answers = [engine.submit(row, timeout=60) for row in x]
    answered = [future.result().num_steps.item() for future in answers]
    engine.close()
    return _figures((figures, predictions.num_steps.tolist(), curve, path, answered), device)


def evaluation(name: str) -> None:
    """Figures of held-out puzzles, and puzzles that the service answers."""
    same(functools.partial(_evaluation, name))


def _generation(name: str, device: torch.device) -> Any:
    torch.manual_seed(0)
    model = CONFIGS[name].build().double().to(device).eval()
    prompts, found = [[5, 6, 7], [8]], []
    for sampling in (Sampling(seed=1), Sampling(temperature=0.0), Sampling(top_k=3, top_p=0.9)):
        drawn = generate(model, prompts, tokens=6, context=8, sampling=sampling, max_steps=4)
        found.append(list(drawn))
    return found


def generation(name: str) -> None:
    """Text drawn after two prompts."""
    same(functools.partial(_generation, name))
