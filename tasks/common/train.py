"""The one training loop: supervised segments, a schedule over the budget, averaged weights.

A batch is a set of slots. A segment solves each slot's sample from the state that the last
segment left, detached, takes a loss and an optimiser step. A sample's first segment starts
where the model chooses; after its last one, or with `refill` as soon as it is solved, a new
sample takes its slot.
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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils import _pytree as pytree

from tasks.common.checkpoint import (
    Checkpoint,
    load_weights,
    optimizer_tensors,
    restore_optimizer,
)
from tasks.common.config import TrainConfig
from tasks.common.loss import answer_loss, halt_loss
from tasks.common.report import Reporter

# Fractions of the budget between looks at held-out data, seconds between checkpoints, and
# optimiser steps between rows of the log.
LOOK_EVERY, SAVE_EVERY, LOG_EVERY = 0.1, 60.0, 10
FINAL_RATE = 0.01


class Task(Protocol):
    """What the loop needs to know of a task."""

    def batch(
        self, size: int, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Inputs, and target classes of the same leading dims, at this share of the budget."""
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
class Slots:
    """The samples in training, one a slot.

    Attributes:
        x: Inputs, shape (slots, ...).
        target: Classes, shape (slots, ...).
        age: Segments that each sample has had, shape (slots,).
        state: Where its last segment ended; None before the first.
    """

    x: Tensor
    target: Tensor
    age: Tensor
    state: Any = None

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        named = {"x": self.x, "target": self.target, "age": self.age}
        if isinstance(self.state, Tensor):
            return {**named, "state": self.state}
        return {**named, **{f"state.{i}": leaf for i, leaf in enumerate(self.state or ())}}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device) -> "Slots":
        """Undo `tensors`."""
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        parts = [moved[name] for name in sorted(moved) if name.startswith("state.")]
        state = moved.get("state", tuple(parts) or None)
        return cls(moved["x"], moved["target"], moved["age"], state)


@dataclasses.dataclass
class Trainer:
    """A run: its model, its data, and all that a checkpoint holds.

    Args:
        task: Source of batches.
        model: Called as model(x, start=, fresh=, max_steps=); see `models.GridAttractor`.
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
        self.slots: Slots | None = None
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
        if slots := checkpoint.tensors.get("slots"):
            self.slots = Slots.from_tensors(slots, self.device)

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        random = {"data": self.generator.get_state(), "torch": torch.get_rng_state()}
        tensors = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "random": random,
            "slots": self.slots.tensors() if self.slots else {},
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
                figures = self._train_segment()
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

    def _train_segment(self) -> dict[str, float]:
        slots = self._filled()
        fresh = slots.age == 0
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast):
            out = self.model(slots.x, start=slots.state, fresh=fresh, max_steps=self.max_steps)
        right = out.logits.detach().argmax(-1) == slots.target
        solved = right.flatten(1).all(1)
        loss = answer_loss(out.logits, slots.target, self.config.loss)
        self._update(loss if out.halt is None else loss + halt_loss(out.halt, solved))
        slots.age += 1
        done = slots.age >= self.config.segments
        if self.config.refill:
            done |= solved if out.halt is None else out.halt > 0
        if out.solution is None:  # nothing to go on from
            done[:] = True
        slots.age[done] = 0
        slots.state = pytree.tree_map(torch.detach, out.state)
        return _figures(out, right, loss)

    def _filled(self) -> Slots:
        """The slots, with a new sample in each that the last segment left empty."""
        if self.slots is None:
            x, target = self._draw(self.config.batch_size)
            self.slots = Slots(x, target, torch.zeros(len(x), dtype=torch.long, device=x.device))
            return self.slots
        empty = (self.slots.age == 0).nonzero()[:, 0]
        if len(empty):
            self.slots.x[empty], self.slots.target[empty] = self._draw(len(empty))
        return self.slots

    def _draw(self, count: int) -> tuple[Tensor, Tensor]:
        x, target = self.task.batch(count, self.generator, self.progress)
        return x.to(self.device), target.to(self.device)

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


def _figures(out: Any, right: Tensor, loss: Tensor) -> dict[str, float]:
    figures = {
        "loss": loss.item(),
        "cell_accuracy": right.float().mean().item(),
        "exact_accuracy": right.flatten(1).all(1).float().mean().item(),
    }
    if out.solution is not None:
        figures["residual"] = out.solution.residual.median().item()
        figures["solver_steps"] = out.solution.num_steps.float().mean().item()
    return figures
