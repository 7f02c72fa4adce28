"""The experiments of the language task; see `tasks.experiments.run`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import torch
from torch import nn

from implicit import FixedPointLayer
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.experiments.compare import COLUMNS
from tasks.experiments.run import Data, Experiment
from tasks.lm.config import LanguageTask
from tasks.lm.data import Corpus, measure
from tasks.lm.generate import Sampling, generate
from tasks.lm.internalise import BUDGETS, by_budget
from tasks.lm.pictures import SUBPLOTS, plot_budgets
from tasks.lm.stream import load_batches
from tasks.lm.tokenizer import END, read_tokenizer
from tasks.reports.logger import print_table
from tasks.runs import load_model

SAMPLE_TOKENS = 120


def _bits(row: dict[str, Any]) -> str:
    spread = f" +- {row['spread']:.4f}" if row["spread"] is not None else ""
    return f"{row['bits_per_byte']:.4f}{spread}"


class TextExperiment(Experiment):
    """The experiments of the language task."""

    task = "lm"
    subplots = SUBPLOTS
    metric, sign = "bits_per_byte", -1
    columns: ClassVar[Mapping[str, Callable[[dict[str, Any]], str]]] = {
        **COLUMNS,
        "bits per byte": _bits,
        "steps": lambda row: f"{row['steps']:.0f}",
        "min": lambda row: f"{row['minutes']:.1f}",
        "solver": lambda row: f"{row['mean_steps']:.1f}" if "mean_steps" in row else "-",
        "T=0": lambda row: (
            f"{row['proposal_loss_over_converged'] - 1:+.1%}" if "mean_steps" in row else "-"
        ),
    }

    def load(self, config: Any, checkpoint: Checkpoint | None, validate: bool = True) -> Data:
        """See `Experiment`."""
        print("Reading text ...", flush=True)
        state = None if checkpoint is None else read_tokenizer(checkpoint, config).to_json()
        batches = load_batches(config, state)
        return Data(
            batches,
            held_out=batches.corpus,
            source=f"on {batches.source}",
            meta={"tokenizer": batches.corpus.tokenizer.to_json()},
        )

    def prepare(self, model: nn.Module, config: Any) -> None:
        """See `Experiment`."""
        if config.train.autocast:
            _loosen(model, torch.finfo(torch.bfloat16).eps)

    def model(self, config: Any, checkpoint: Path) -> nn.Module:
        """See `Experiment`."""
        return load_model(LanguageTask, checkpoint, device=config.train.device)[0]

    def evaluate(self, model: Any, held_out: Corpus, config: Any, folder: Path) -> dict[str, Any]:
        """See `Experiment`: metrics, loss by solver budget with a plot, and a text sample."""
        figures = measure(model, held_out, config)
        if model.solving is not None:
            figures["by_budget"] = by_budget(model, held_out, config, BUDGETS)
            plot_budgets(figures["by_budget"], folder / "budgets.png")
        sampling = Sampling(seed=config.train.seed)
        drawn = generate(
            model, [[END]], tokens=SAMPLE_TOKENS, context=config.data.context, sampling=sampling
        )
        figures["sample"] = held_out.tokenizer.decode([int(token) for token in drawn])
        return figures

    def show(self, preset: str, config: Any, held_out: Any, figures: dict[str, Any]) -> None:
        """See `Experiment`."""
        print_figures(f"{config.model.name} on held-out text ({preset})", figures)

    def halves(self, model: Any, held_out: Corpus, config: Any) -> dict[str, Any]:
        """See `Experiment`."""
        middle = len(held_out.held_out) // 2
        first, second = (
            dataclasses.replace(held_out, held_out=held_out.held_out[part])
            for part in (slice(0, middle), slice(middle, None))
        )
        found = {
            "choosing": measure(model, first, config), "reported": measure(model, second, config)
        }  # fmt: skip
        if model.solving is not None:
            found["proposal"] = measure(model, second, config, max_steps=0)
        return found

    def row(self, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See `Experiment`."""
        row: dict[str, Any] = {
            # The same seed is the same text in the same order.
            "by_seed": [result["reported"]["bits_per_byte"] for result in results],
            "perplexity": mean(result["reported"]["perplexity"] for result in results),
            "steps": mean(result["train_steps"] for result in results),
            "minutes": mean(result["train_minutes"] for result in results),
        }
        if "converged" in results[0]["reported"]:
            for key in ("converged", "mean_steps", "median_residual"):
                row[key] = mean(result["reported"][key] for result in results)
            row["proposal_loss_over_converged"] = mean(
                result["proposal"]["loss"] / result["reported"]["loss"] for result in results
            )
        return row


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
