"""The one training loop: supervised segments, a schedule over the budget, averaged weights.

Several processes may share the batches, see `parallel`: each draws all of a batch from the same
generator and takes its rows, so that their number changes no number.

A batch is a set of slots. A segment solves each slot's sample from the state that the last
segment left, detached, takes a loss and an optimiser step. A sample's first segment starts
where the model chooses; after its last one, or with `refill` as soon as it is solved, a new
sample takes its slot. A batch may go through the model in micro-batches, see `micro_batches`.
"""

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models import checkpoint_activations
from tasks.common.advice import Adviser
from tasks.common.checkpoint import (
    Checkpoint,
    load_weights,
    optimizer_tensors,
    restore_optimizer,
)
from tasks.common.config import TrainConfig
from tasks.common.data_files import fingerprints, refuse_changed
from tasks.common.device import has_fast_bfloat16
from tasks.common.health import step_figures, watched
from tasks.common.keeper import Keeper
from tasks.common.micro_batches import Outcome, forward, micro_batch
from tasks.common.optimizers import SCHEDULES, build_optimizers
from tasks.common.parallel import (
    Group,
    distribute,
    exchanging,
    parameters_of,
    sharded,
    unsharded,
    whole,
)
from tasks.common.report import Reporter, means
from tasks.common.sharded import ShardedKeeper
from tasks.common.slots import Slots
from tasks.common.stop_signal import StopSignal
from tasks.common.task import Task

# Looks at held-out data in a run, and optimiser steps between rows of the log.
LOOKS, LOG_EVERY = 10, 10
# Steps without a finite gradient, one after the other, that end a run.
MAX_SKIPPED = 20


class Interrupted(Exception):
    """Training was stopped from outside; `path` is the checkpoint it left."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.path = path


class SourceLost(ValueError):
    """The data cannot be read on; a task's `batch` raises it before it gives anything away."""


class Diverged(ValueError):
    """Training came to an end without numbers to go on with."""


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
        self.group = Group.current()
        config = self.config
        self.rows_at_once = micro_batch(config.batch_size, self.group.size, config.accumulate)
        if config.checkpoint_activations:
            checkpoint_activations(self.model)
        self.average = AveragedModel(self.model, multi_avg_fn=self._average)
        # Never trained itself: looks at it are without the noise of training.
        self.average.eval()
        self.network = distribute(self.model, self.average.module, self.config.parallel, self.group)
        self.optimizers = build_optimizers(self.model, self.config)
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self.step = 0
        self.seconds = 0.0
        self.skipped = 0
        self.history: list[dict[str, float]] = []
        self.unlogged: list[dict[str, float]] = []
        self.slots: Slots | None = None
        self.adviser = Adviser(self.model, self.config)
        keep = self.config.keep_last
        self.keeper = Keeper(self.folder, keep_last=keep)
        if self.config.checkpoints == "sharded":
            self.keeper = ShardedKeeper(self.folder, self.group, keep)
        self.path = self.keeper.newest
        self.meta = {**self.meta, "data": fingerprints(self.config)}

    def _average(self, average: Any, current: Any, count: Any) -> None:
        """Exponential, and short at first: a short run would remember its initial weights."""
        decay = min(self.config.averaging, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(decay)(average, current, count)

    @property
    def progress(self) -> float:
        """Share of the budget that is used, in [0, 1]."""
        if self.config.steps is not None:
            return min(1.0, self.step / self.config.steps)
        return min(1.0, self.seconds / (60 * self.config.minutes))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on exactly where a checkpoint stopped.

        Raises:
            CheckpointError: Its weights do not fit this model.
            ValueError: A data file is no longer what it was.
        """
        refuse_changed(checkpoint.meta.get("data", {}), self.config)
        for module, name in ((self.model, "model"), (self.average, "average")):
            weights = sharded(checkpoint.tensors[name], module.state_dict())
            load_weights(module, weights, self.path)
        for name, optimizer in self._named_optimizers():
            state = checkpoint.tensors.get(name, {})
            restore_optimizer(optimizer, sharded(state, parameters_of(optimizer, state)))
        self.generator.set_state(checkpoint.tensors["random"]["data"])
        torch.set_rng_state(checkpoint.tensors["random"]["torch"])
        if self.device.type == "cuda" and "cuda" in checkpoint.tensors["random"]:
            torch.cuda.set_rng_state(checkpoint.tensors["random"]["cuda"], self.device)
        self.step, self.seconds = checkpoint.meta["step"], checkpoint.meta["seconds"]
        self.history = checkpoint.meta["history"]
        self.unlogged = checkpoint.meta.get("unlogged", [])
        for row in self.history:
            self.adviser.read(row)  # what it said then is known
        self.task.go_to(checkpoint.meta.get("position"))
        if slots := checkpoint.tensors.get("slots"):
            mine = {name: rows[self.group.rows(len(rows))] for name, rows in slots.items()}
            self.slots = Slots.from_tensors(mine, self.device)

    def save(self, best: bool = False) -> None:
        """Write the checkpoint, or warn; see `Keeper`. Every process must ask."""
        if isinstance(self.keeper, ShardedKeeper):
            self.keeper.save(self._checkpoint(dict, self.keeper.rows), best)
            return
        checkpoint = self._checkpoint(unsharded, self.group.whole)
        if self.group.first:
            self.keeper.save(checkpoint, best)

    def _checkpoint(
        self,
        gather: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
        gather_rows: Callable[[Tensor], Tensor],
    ) -> Checkpoint:
        """All state, of which each process has a share unless it is gathered."""
        random = {"data": self.generator.get_state(), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        tensors = {
            "model": gather(self.model.state_dict()),
            "average": gather(self.average.state_dict()),
            "random": random,
            "slots": {},
        }
        if self.slots is not None:
            rows = self.slots.tensors()
            tensors["slots"] = {name: gather_rows(rows[name]) for name in rows}
        for name, optimizer in self._named_optimizers():
            tensors[name] = gather(optimizer_tensors(optimizer))
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "unlogged": self.unlogged,
            "position": self.task.position(),
        }
        return Checkpoint(tensors, {**self.meta, **state})

    def _named_optimizers(self) -> list[tuple[str, torch.optim.Optimizer]]:
        names = ("optimizer", "second_optimizer")
        return list(zip(names, self.optimizers, strict=False))

    def run(self) -> nn.Module:
        """Train until the budget is used; return the averaged model.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the batch in hand was finished and saved.
            Diverged: The gradient stays non-finite.
            NotSaved: The last state could not be written.
            SourceLost: The task's data cannot be read on; one process leaves a checkpoint.
        """
        saved, stopped, log = time.monotonic(), False, contextlib.nullcontext()
        if self.config.autocast and not has_fast_bfloat16(self.device):
            print("This CPU has no instructions for bfloat16: faster without `--autocast`.")
        if self.group.first:
            log = Reporter(self.folder, self.history)
        with StopSignal(second_stops=self.group.size == 1) as stop, log as reporter:
            while self.progress < 1 and not stopped:
                began, looks = time.monotonic(), int(LOOKS * self.progress)
                try:
                    figures = self._train_segment()
                except SourceLost as error:
                    if self.group.size == 1:
                        self.save()
                        self.keeper.finish()
                    raise SourceLost(
                        f"{error} Then go on with `train --resume {self.path}`."
                    ) from error
                # Looks are not training: a model that is slow to solve would train less.
                seconds, age = time.monotonic() - began, time.monotonic() - saved
                figures, age, stopped = self._agree(figures, seconds, age, stop.requested)
                best = False
                if int(LOOKS * self.progress) > looks:
                    looked = self.group.mean(self._look())
                    best = bool(looked) and self._is_best(looked)
                    figures |= looked
                self._note(figures, reporter)
                if best or age > self.config.save_every:
                    self.save(best)
                    saved = time.monotonic()
        self.keeper.finish()
        if self.group.of_first(self.keeper.step) != self.step:
            self.save()
        self.keeper.require_saved()
        if self.progress < 1:
            raise Interrupted(self.path)
        return self.average.module

    def _agree(
        self, figures: dict[str, float], seconds: float, age: float, stop: bool
    ) -> tuple[dict[str, float], float, bool]:
        """Count a step's time; what all processes make of figures, clocks and signals."""
        ours = {"seconds": seconds, "age": age, "stop": float(stop)}
        means = self.group.mean({**figures, **ours})
        seconds, age, share = (means.pop(name) for name in ours)
        self.seconds += seconds
        return means, age, share > 0

    def _look(self) -> dict[str, float]:
        # What it draws, such as a random start, is not missing from the run.
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), watched(self.average.module) as health:
            looked = self.task.look(self.average.module)
        return {**health, **looked} if looked else {}

    def _is_best(self, looked: dict[str, float]) -> bool:
        before = [self.task.score(row) for row in self.history if _looked(row)]
        return self.task.score(looked) > max(before, default=-math.inf)

    def _train_segment(self) -> dict[str, float]:
        slots = self._filled()
        fresh = slots.age == 0
        self.group.seed_step(self.config.seed, self.step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        found = Outcome.joined([self._pass(part, fresh) for part in range(self.config.accumulate)])
        self._update()
        slots.age += 1
        done = slots.age >= self.config.segments
        if self.config.refill:
            done |= found.solved if found.halt is None else found.halt > 0
        if found.solve is None:  # nothing to go on from
            done[:] = True
        slots.age[done] = 0
        figures = self.task.figures(found.right)
        return {"loss": found.loss.item(), **figures, **step_figures(found.solve)}

    def _pass(self, part: int, fresh: Tensor) -> Outcome:
        """Forward and backward, of one micro-batch; its gradient is added to that of others."""
        assert self.slots is not None
        slots, config = self.slots, self.config
        rows = slice(part * self.rows_at_once, (part + 1) * self.rows_at_once)
        with exchanging(self.network, on=part == config.accumulate - 1):
            loss, outcome, state = forward(
                self.network,
                slots.x[rows],
                slots.target[rows],
                config,
                max_steps=self.max_steps,
                start=slots.start(rows),
                fresh=fresh[rows],
            )
            loss.backward()
        if config.segments > 1 and outcome.solve is not None:
            slots.keep(rows, state)
        return outcome

    def _filled(self) -> Slots:
        """The slots, with a new sample in each that the last segment left empty."""
        rows = self.group.rows(self.config.batch_size)
        if self.slots is None:
            x, target = self._draw(self.config.batch_size, rows)
            self.slots = Slots(x, target, torch.zeros(len(x), dtype=torch.long, device=x.device))
            return self.slots
        # Of all processes: all draw alike, and each takes what is for its own slots.
        empty = (self.group.whole(self.slots.age) == 0).nonzero()[:, 0]
        if len(empty):
            ours = (empty >= rows.start) & (empty < rows.stop)
            slots = empty[ours] - rows.start
            self.slots.x[slots], self.slots.target[slots] = self._draw(len(empty), ours.cpu())
        return self.slots

    def _draw(self, count: int, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """These rows of a batch of `count`."""
        x, target = self.task.batch(count, self.generator, self.progress)
        return x[rows].to(self.device), target[rows].to(self.device)

    def _update(self) -> None:
        """One optimiser step, unless the gradient is not finite: then none, and new samples."""
        config = self.config
        warm = min(1.0, (self.step + 1) / max(config.warmup, 1))
        rate = config.learning_rate * warm * SCHEDULES[config.schedule](self.progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), config.clip))
        self.step += 1
        if not bool(norm.isfinite()):
            self._skip()
            return
        self.skipped = 0
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update_parameters(self.model)

    def _skip(self) -> None:
        self.skipped += 1
        if self.skipped >= MAX_SKIPPED:
            raise Diverged(
                f"The gradient was not finite in {MAX_SKIPPED} steps one after the other, up to "
                f"step {self.step}. Lower `--learning-rate`, or go on from {self.path} with other "
                "data."
            )
        warnings.warn(f"Step {self.step} is skipped: its gradient is not finite.", stacklevel=2)
        assert self.slots is not None
        self.slots.age[:] = self.config.segments

    def _note(self, figures: dict[str, float], reporter: Reporter | None) -> None:
        """Log the mean of the steps since the last row.

        A single step would mislead: samples that came together are of one age, and a loss that
        is looked at every tenth step would beat with the number of their segments.
        """
        self.unlogged.append(figures)
        row = {"step": self.step, "minutes": self.seconds / 60, **means(self.unlogged)}
        last = self.history[-1]["step"] if self.history else -LOG_EVERY
        if self.step - last >= LOG_EVERY or _looked(row):
            self.unlogged = []
            self.history.append(row)
            if (advice := self.adviser.read(row)) is not None:
                warnings.warn(advice, stacklevel=2)
            if reporter is not None:
                reporter.record(row)
        if reporter is None:
            return
        left = self.seconds * (1 - self.progress) / max(self.progress, 1e-9)
        reporter.show({**self._last_look(), **row}, self.progress, left)

    def _last_look(self) -> dict[str, float]:
        looks = [_looked(row) for row in self.history if _looked(row)]
        return looks[-1] if looks else {}


def _looked(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith("test_")}
