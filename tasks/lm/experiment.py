"""One run: read the text, train, evaluate, print a sample, and store the result."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from implicit import FixedPointLayer
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.device import choose_device, compile_blocks
from tasks.lm.config import LanguageConfig
from tasks.lm.data import Corpus, measure
from tasks.lm.generate import Sampling, generate
from tasks.lm.internalise import BUDGETS, by_budget
from tasks.lm.pictures import SUBPLOTS, plot_budgets
from tasks.lm.stream import load_batches
from tasks.lm.tokenizer import END
from tasks.reports.curves import plot_learning
from tasks.reports.logger import print_table
from tasks.runs import export, load_average
from tasks.training.trainer import Interrupted, Trainer

SAMPLE_TOKENS = 120


def run_experiment(
    name: str, config: LanguageConfig, folder: Path, checkpoint: Checkpoint | None = None
) -> dict[str, Any]:
    """Train, or continue from a checkpoint, then evaluate.

    Args:
        name: The preset's.
        config: The options.
        folder: Receives checkpoint, weights, log, pictures and `result.json`.
        checkpoint: Where an earlier run of the same configuration stopped.

    Returns:
        The result, as JSON values.

    Raises:
        Interrupted: By Ctrl-C or SIGTERM; a checkpoint is left.
    """
    began = time.monotonic()
    trainer, corpus, result = train(name, config, folder, checkpoint)
    if not trainer.group.first:
        return result
    print("Evaluating ...", flush=True)
    try:
        model = config.build().to(trainer.device)
        load_average(model, Checkpoint.load(trainer.path), trainer.path)
        figures = _evaluate(model.eval(), corpus, config, folder)
        plot_learning(trainer.history, folder / "learning.png", SUBPLOTS)
    except KeyboardInterrupt:
        raise Interrupted(trainer.path) from None
    result |= {
        "eval": figures,
        "wall_seconds": round(time.monotonic() - began, 1),
        "config": config.to_json(),
    }
    export(trainer.path, folder / "model.safetensors")
    (folder / "result.json").write_text(json.dumps(result) + "\n")
    print_figures(f"{config.model} on held-out text ({name})", figures)
    return result


def train(
    name: str, config: LanguageConfig, folder: Path, checkpoint: Checkpoint | None = None
) -> tuple[Trainer, Corpus, dict[str, Any]]:
    """Train as `run_experiment` does, without evaluating.

    Returns:
        The trainer, the text, and what the result says of the training.
    """
    torch.manual_seed(config.seed)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    print("Reading text ...", flush=True)
    batches = load_batches(config, checkpoint and checkpoint.meta["tokenizer"])
    model = config.build().to(choose_device(config.device))
    if config.compile:
        compile_blocks(model)
    meta = {
        "task": "lm",
        "preset": name,
        "config": config.to_json(),
        "tokenizer": batches.corpus.tokenizer.to_json(),
    }
    trainer = Trainer(batches, model, config, folder, config.free_steps, meta)
    if config.autocast:
        _loosen(model, torch.finfo(torch.bfloat16).eps)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"Training {config.model}, {parameters:,} parameters, on {batches.source}, in {folder}",
        flush=True,
    )
    trainer.run()
    figures = {
        "task": "lm",
        "preset": name,
        "parameters": parameters,
        "train_steps": trainer.step,
        "train_tokens": trainer.step * config.batch_size * config.context,
        "train_minutes": round(trainer.seconds / 60, 2),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return trainer, batches.corpus, figures


def _loosen(model: nn.Module, rtol: float) -> None:
    """Loosen the tolerance of the solver to the precision of the map.

    Its rounding keeps the residual above a tighter tolerance, and the solver would go on until
    its free steps are used up. Looks and evaluation, in float32, are of the averaged model,
    which keeps its tolerance.
    """
    for layer in model.modules():
        if isinstance(layer, FixedPointLayer):
            wanted = max(rtol, layer.solver.rtol)
            layer.solver = dataclasses.replace(layer.solver, rtol=wanted)


def _evaluate(model: Any, corpus: Corpus, config: LanguageConfig, folder: Path) -> dict[str, Any]:
    """Evaluate a finished run: metrics, loss by solver budget with a plot, and a text sample."""
    figures = measure(model, corpus, config)
    if model.solving is not None:
        figures["by_budget"] = by_budget(model, corpus, config, BUDGETS)
        plot_budgets(figures["by_budget"], folder / "budgets.png")
    sampling = Sampling(seed=config.seed)
    drawn = generate(
        model, [[END]], tokens=SAMPLE_TOKENS, context=config.context, sampling=sampling
    )
    figures["sample"] = corpus.tokenizer.decode([int(token) for token in drawn])
    return figures


def print_figures(title: str, figures: dict[str, Any]) -> None:
    """Print the table of an evaluation, and a text sample below it."""
    rows = {
        "loss (nats per token)": f"{figures['loss']:.4f}",
        "perplexity": f"{figures['perplexity']:.2f}",
        "bits per byte": f"{figures['bits_per_byte']:.4f}",
        "held-out tokens": f"{figures['tokens']:,}",
    }
    if "converged" in figures:
        rows |= {
            "tokens converged": f"{figures['converged']:.1%}",
            "solver steps": f"{figures['mean_steps']:.1f}",
            "median relative residual": f"{figures['median_residual']:.1e}",
            "distance of the proposal, |y0 - y*| / |y*|": f"{figures['distance']:.3f}",
        }
    if "passages" in figures:
        rows |= {
            "LAMBADA perplexity (per word)": f"{figures['lambada_perplexity']:.2f}",
            "LAMBADA last words right": f"{figures['lambada_accuracy']:.1%} of "
            f"{figures['passages']}",
        }
    for row in figures.get("by_budget", []):
        steps = row["max_steps"]
        rows[f"loss after {steps} step{'s' * (steps != 1)}"] = f"{row['loss']:.4f}"
    print_table(title, rows)
    if "sample" in figures:
        print(figures["sample"])
