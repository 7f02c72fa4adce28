"""The one training loop: supervised segments, a schedule over the budget, averaged weights.

Each batch is trained on in segments. A segment solves from the state that the last one left,
detached, takes a loss and an optimiser step; the first one starts at the model's proposal.
"""

import dataclasses
import math
import signal
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tasks.common.checkpoint import (
    Checkpoint,
    load_weights,
    optimizer_tensors,
    restore_optimizer,
)
from tasks.common.config import TrainConfig
from tasks.common.report import Reporter

# Fractions of the budget between looks at held-out data, seconds between checkpoints, and
# optimiser steps between rows of the log.
LOOK_EVERY, SAVE_EVERY, LOG_EVERY = 0.1, 60.0, 10
FINAL_RATE = 0.01


class Task(Protocol):
    """What the loop needs to know of a task."""

    name: str

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs, and target classes of the same leading dims."""
        ...

    def look(self, model: Any) -> float:
        """Exact accuracy on a few held-out samples, for the curve; nothing depends on it."""
        ...


class _StopSignal:
    """Ask the loop to stop after the batch in hand; a second Ctrl-C stops at once."""

    def __enter__(self) -> "_StopSignal":
        self.requested = False
        self.previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class Interrupted(Exception):
    """Training was stopped from outside; `path` is the checkpoint it left."""

    def __init__(self, path: Path):
        super().__init__(str(path))
        self.path = path


@dataclasses.dataclass
class Trainer:
    """A run: its model, its data, and all that a checkpoint holds.

    Args:
        task: Source of batches.
        model: Called as model(x, start=, max_steps=); see `models.GridAttractor`.
        config: The dials.
        folder: Where checkpoint and logs go.
        max_steps: Solver updates per segment in training, before the recorded ones.
        meta: Stored in the checkpoint beside the loop's own state.
    """

    task: Task
    model: nn.Module
    config: TrainConfig
    folder: Path
    max_steps: int
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.average = AveragedModel(
            self.model, multi_avg_fn=get_ema_multi_avg_fn(self.config.averaging)
        )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=self.config.weight_decay,
        )
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.path = self.folder / "checkpoint.safetensors"

    @property
    def progress(self) -> float:
        """Share of the budget that is used, in [0, 1]."""
        if self.config.steps is not None:
            return min(1.0, self.step / self.config.steps)
        return min(1.0, self.seconds / (60 * self.config.minutes))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on exactly where a checkpoint stopped."""
        load_weights(self.model, checkpoint.tensors["model"], self.path)
        load_weights(self.average, checkpoint.tensors["average"], self.path)
        restore_optimizer(self.optimizer, checkpoint.tensors.get("optimizer", {}))
        self.generator.set_state(checkpoint.tensors["random"]["data"])
        torch.set_rng_state(checkpoint.tensors["random"]["torch"])
        self.step, self.seconds = checkpoint.meta["step"], checkpoint.meta["seconds"]
        self.history = checkpoint.meta["history"]

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        random = {"data": self.generator.get_state(), "torch": torch.get_rng_state()}
        tensors = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "random": random,
        }
        state = {"step": self.step, "seconds": self.seconds, "history": self.history}
        Checkpoint(tensors, {**self.meta, **state}).save(self.path)

    def run(self) -> nn.Module:
        """Train until the budget is used; return the averaged model.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the batch in hand was finished and saved.
        """
        next_look, saved = self.progress + LOOK_EVERY, time.monotonic()
        with _StopSignal() as stop, Reporter(self.folder, self.step) as reporter:
            while self.progress < 1 and not stop.requested:
                began = time.monotonic()
                figures = self._train_batch()
                if self.progress >= next_look:
                    next_look = self.progress + LOOK_EVERY
                    figures["test_exact"] = self.task.look(self.average.module)
                self._note(figures, time.monotonic() - began, reporter)
                if time.monotonic() - saved > SAVE_EVERY:
                    self.save()
                    saved = time.monotonic()
        self.save()
        if self.progress < 1:
            raise Interrupted(self.path)
        return self.average.module

    def _train_batch(self) -> dict[str, float]:
        x, target = (
            t.to(self.device) for t in self.task.batch(self.config.batch_size, self.generator)
        )
        state, figures = None, {}
        for _ in range(self.config.segments):
            out = self.model(x, start=state, max_steps=self.max_steps)
            loss = F.cross_entropy(out.logits.flatten(0, 1), target.flatten())
            self._update(loss)
            figures = _figures(out, target, loss)
            if out.solution is None or self.progress >= 1:
                break
            state = out.state.detach()
        return figures

    def _update(self, loss: Tensor) -> None:
        config = self.config
        warm = min(1.0, (self.step + 1) / max(config.warmup, 1))
        cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * self.progress))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * warm * cosine
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.step += 1

    def _note(self, figures: dict[str, float], seconds: float, reporter: Reporter) -> None:
        self.seconds += seconds
        row = {"step": self.step, "minutes": self.seconds / 60, **figures}
        last = self.history[-1]["step"] if self.history else -LOG_EVERY
        if self.step - last >= LOG_EVERY or "test_exact" in row:
            self.history.append(row)
            reporter.record(row)
        left = self.seconds * (1 - self.progress) / max(self.progress, 1e-9)
        reporter.show({**self._last_look(), **row}, self.progress, left)

    def _last_look(self) -> dict[str, float]:
        looks = [row["test_exact"] for row in self.history if "test_exact" in row]
        return {"test_exact": looks[-1]} if looks else {}


def _figures(out: Any, target: Tensor, loss: Tensor) -> dict[str, float]:
    with torch.no_grad():
        right = out.logits.argmax(-1) == target
        figures = {
            "loss": loss.item(),
            "cell_accuracy": right.float().mean().item(),
            "exact_accuracy": right.flatten(1).all(1).float().mean().item(),
        }
        if out.solution is not None:
            figures["residual"] = out.solution.residual.median().item()
            figures["solver_steps"] = out.solution.num_steps.float().mean().item()
    return figures
