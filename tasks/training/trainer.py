"""The one training loop: supervised segments, a schedule over the budget, averaged weights.

Several processes may share the batches, see `tasks.distributed`: each takes its rows of the batch
that all would draw from the same generator, so that results do not depend on their number.

Each row of a batch holds a sample for several segments. A segment solves from the detached state
that the last segment left, takes the loss and an optimiser step. The first segment of a sample
starts where the model chooses; after its last one, or with `refill` as soon as it is solved, a new
sample takes its row. A batch may go through the model in micro-batches, see `micro_batches`, and a
micro-batch in parts side by side, see `tasks.threads`.
"""

import contextlib
import dataclasses
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import recompute_activations
from tasks.checkpoints.checkpoint import (
    Checkpoint,
    load_weights,
    optimizer_tensors,
    random_tensors,
    restore_optimizer,
    restore_random,
)
from tasks.checkpoints.file import refusing
from tasks.checkpoints.manager import CheckpointManager
from tasks.device import (
    has_fast_bfloat16,
    keep_freed_memory,
    kept_random_state,
    peak_memory,
)
from tasks.distributed import Group, distribute, full_tensor, no_sync
from tasks.reports.logger import Reporter
from tasks.threads import count_parts, side_by_side
from tasks.training.data_files import fingerprints, refuse_changed
from tasks.training.history import History
from tasks.training.metrics import loss_metrics, solve_metrics, step_metrics
from tasks.training.micro_batches import Outcome, add_gradients, forward, micro_batch
from tasks.training.monitor import ConvergenceMonitor
from tasks.training.normuon import NorMuon
from tasks.training.optimizers import SCHEDULES, averaged, build_optimizers, named
from tasks.training.options import Config
from tasks.training.samples import ActiveSamples, check_samples, least_segments, refilled
from tasks.training.stop_signal import Interrupted, StopSignal
from tasks.training.task import SourceLost, Task

VALIDATIONS = 10  # in a run
# Steps without a finite gradient, one after the other, that end a run.
MAX_SKIPPED = 20


class Diverged(ValueError):
    """Training was given up, since its gradient stays non-finite."""


@dataclasses.dataclass
class Trainer:
    """One training run: the model, the data, and everything that a checkpoint holds.

    Args:
        task: Source of batches.
        model: Called as model(x, start=, fresh=, max_steps=); see `models.GridAttractor`.
        config: The options.
        folder: Receives checkpoints and logs.
        max_steps: Solver updates per segment in training, before the recorded ones.
        meta: Stored in the checkpoint beside the loop's own state.
    """

    task: Task
    model: nn.Module
    config: Config
    folder: Path
    max_steps: int
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.group = Group.current()
        config = self.config.train
        self.rows_at_once = micro_batch(config.batch_size, self.group.size, config.accumulate)
        if config.checkpoint_activations:
            recompute_activations(self.model)
        self.average = averaged(self.model, config.averaging)
        self.network = distribute(self.model, self.average.module, config.parallel, self.group)
        self.optimizers = build_optimizers(self.model, self.config)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.seconds = 0.0
        self.skipped = 0
        self.parts: int | None = None
        monitor = ConvergenceMonitor(self.model, self.config)
        self.history = History(self.task.selection_score, monitor)
        self.samples: ActiveSamples | None = None
        if config.checkpoints == "sharded":  # slow to load
            from tasks.checkpoints.sharded_manager import ShardedCheckpointManager as kind
        else:
            kind = CheckpointManager
        self.manager = kind(self.folder, self.group, config.keep_last)
        self.path = self.manager.newest
        self.meta = {**self.meta, "data": fingerprints(self.config)}

    @property
    def progress(self) -> float:
        """Share of the budget that is used, in [0, 1]."""
        if self.config.train.steps is not None:
            return min(1.0, self.step / self.config.train.steps)
        return min(1.0, self.seconds / (60 * self.config.train.minutes))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue exactly where a checkpoint was saved.

        Raises:
            CheckpointError: Its weights or its other state do not fit this model.
            ValueError: A data file is no longer what it was.
        """
        refuse_changed(checkpoint.meta.get("data", {}), self.config)
        with refusing(checkpoint.path, "has no state that training can go on from"):
            self._restore(checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> None:
        for module, name in ((self.model, "model"), (self.average, "average")):
            load_weights(module, checkpoint.group(name), checkpoint.path)
        for name, optimizer in named(self.optimizers).items():
            restore_optimizer(optimizer, checkpoint.tensors.get(name, {}))
        restore_random(self.generator, self.device, checkpoint.group("random"))
        self.step, self.seconds = checkpoint.value("step"), checkpoint.value("seconds")
        self.history.restore(checkpoint.value("history"), checkpoint.meta.get("unlogged", []))
        self.task.load_state_dict(checkpoint.meta.get("position"))
        if samples := checkpoint.tensors.get("slots"):
            check_samples(samples, self.config, next(self.model.parameters()).dtype)
            mine = {name: rows[self.group.rows(len(rows))] for name, rows in samples.items()}
            self.samples = ActiveSamples.from_tensors(mine, self.device)

    def save(self, best: bool = False) -> None:
        """Write the checkpoint, or warn; see `CheckpointManager`. Every process must call it."""
        collect = self.manager.collect  # what this process holds of it
        tensors = {
            "model": collect(self.model.state_dict()),
            "average": collect(self.average.state_dict()),
            "random": random_tensors(self.generator, self.device),
            "slots": {},
        }
        if self.samples is not None:
            rows = self.samples.tensors()
            tensors["slots"] = {name: self.manager.collect_rows(rows[name]) for name in rows}
        for name, optimizer in named(self.optimizers).items():
            tensors[name] = collect(optimizer_tensors(optimizer))
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history.rows,
            "unlogged": self.history.window,
            "position": self.task.state_dict(),
        }
        self.manager.save(Checkpoint(tensors, {**self.meta, **state}), best)

    def run(self) -> nn.Module:
        """Train until the budget is used; return the averaged model.

        Raises:
            Interrupted: Ctrl-C, SIGTERM or SIGHUP; the batch in hand was finished and saved.
            Diverged: The gradient stays non-finite.
            NotSaved: The last state could not be written.
            SourceLost: The task's data cannot be read on; one process leaves a checkpoint.
        """
        saved, stopped, log = time.monotonic(), False, contextlib.nullcontext()
        if self.config.train.autocast and not has_fast_bfloat16(self.device):
            print("This CPU has no instructions for bfloat16: faster without `--autocast`.")
        if self.group.first:
            log = Reporter(self.folder, self.history.rows)
        with StopSignal(second_stops=self.group.size == 1) as stop, log as reporter:
            while self.progress < 1 and not stopped:
                began, validations = time.monotonic(), int(VALIDATIONS * self.progress)
                metrics = self._train_or_save()
                # Only training counts as time: with validation, a model that is slow to solve
                # would be trained less.
                seconds, age = time.monotonic() - began, time.monotonic() - saved
                metrics, age, stopped = self._agree(metrics, seconds, age, stop.requested)
                best = False
                if int(VALIDATIONS * self.progress) > validations:
                    validation = self.group.all_reduce(self._validate())
                    best = bool(validation) and self.history.is_best(validation)
                    metrics |= validation
                self._log(metrics, reporter)
                if age > self.config.train.save_every or best:
                    self.save(best)
                    saved = time.monotonic()
            # While signals still wait: a closed terminal may send more than one.
            self.manager.finish()
            if self.group.broadcast(self.manager.step) != self.step:
                self.save()
            # A signal that came in the last step or later: the evaluation is left to the next run.
            stopped |= self.group.broadcast(stop.requested)
        self.manager.require_saved()
        if stopped:
            raise Interrupted(self.path)
        return self.average.module

    def _train_or_save(self) -> dict[str, float]:
        """Train one segment; where the data are lost, one process alone leaves a checkpoint."""
        try:
            return self._train_segment()
        except SourceLost as error:
            if self.group.size == 1:
                self.save()
                self.manager.finish()
            raise SourceLost(f"{error} Then go on with `train --resume {self.path}`.") from error

    def _agree(
        self, metrics: dict[str, float], seconds: float, age: float, stop: bool
    ) -> tuple[dict[str, float], float, bool]:
        """Average metrics and clocks over the processes, and count the time of the step.

        Returns:
            The metrics, the age of the last checkpoint in seconds, and whether any process was
            asked to stop.
        """
        ours = {"seconds": seconds, "age": age, "stop": float(stop)}
        shared = self.group.all_reduce({**metrics, **ours})
        seconds, age, share = (shared.pop(name) for name in ours)
        self.seconds += seconds
        return shared, age, share > 0

    def _validate(self) -> dict[str, float]:
        """Metrics of held-out samples and of their solves."""
        # Validation may draw random numbers, such as starts; the run must not miss them.
        with kept_random_state(self.device), solve_metrics(self.average.module) as solves:
            validation = self.task.validate(self.average.module)
        return {**solves, **validation} if validation else {}

    def _train_segment(self) -> dict[str, float]:
        """Solve, take the loss and one optimiser step; the metrics of that."""
        config = self.config.train

        def draw(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
            return self.task.share(rows, count, self.generator, self.progress)

        first = self.samples is None
        samples = refilled(
            self.samples, config.batch_size, config.segments, draw, self.group, self.device
        )
        self.samples = samples
        fresh = (samples.age == 0) | first
        self.group.seed_step(config.seed, self.step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        found = Outcome.cat(
            [self._micro_batch(number, fresh) for number in range(config.accumulate)]
        )
        self._update()
        samples.age += 1
        done = samples.age >= config.segments
        if config.refill:
            done |= found.solved if found.halted is None else self._left(found.halted, samples.age)
        if found.solve is None:  # there is no state from which a next segment could start
            done[:] = True
        samples.age[done] = 0
        losses = loss_metrics(found.loss, found.row_loss, fresh, done, self.group)
        return {**losses, **self.task.metrics(found.right), **step_metrics(found.solve)}

    def _left(self, halted: Tensor, age: Tensor) -> Tensor:
        """Which samples leave of those that the halting head would end; see `least_segments`."""
        batch_size, segments = self.config.train.batch_size, self.config.train.segments
        least = least_segments(batch_size, segments, self.generator)
        return halted & (age >= least[self.group.rows(batch_size)].to(age.device))

    def _micro_batch(self, number: int, fresh: Tensor) -> Outcome:
        """Forward and backward pass of one micro-batch; gradients of micro-batches add up."""
        assert self.samples is not None
        if self.parts is None:  # now, since a model may draw in training alone
            x, alone = self.samples.x[: self.rows_at_once], self.group.size == 1
            most = count_parts(self.model, x) if alone else 1
            self.parts = max(n for n in range(1, most + 1) if self.rows_at_once % n == 0)
        first, size = number * self.rows_at_once, self.rows_at_once // self.parts
        rows = [slice(first + i * size, first + (i + 1) * size) for i in range(self.parts)]
        with no_sync(self.network, enabled=number < self.config.train.accumulate - 1):
            found = side_by_side(lambda part: self._pass(part, fresh), rows, self.parts)
        outcomes, states, gradients = zip(*found, strict=True)
        if self.parts > 1:
            add_gradients(self.model, gradients)
        for part, state in zip(rows, states, strict=True):
            if self.config.train.segments > 1 and outcomes[0].solve is not None:
                self.samples.store(part, state)
        return Outcome.cat(outcomes)

    def _pass(self, rows: slice, fresh: Tensor) -> tuple[Outcome, Any, Any]:
        """What is left of some rows after their forward pass, its state, and their gradient.

        The gradient of rows that are alone is where torch puts it, and None is returned; of rows
        side by side it is returned, since a sum must not depend on who comes first.
        """
        assert self.samples is not None
        assert self.parts is not None
        samples, config, gradients = self.samples, self.config.train, None
        loss, outcome, state = forward(
            self.network,
            samples.x[rows],
            samples.target[rows],
            config,
            max_steps=self.max_steps,
            parts=config.accumulate * self.parts,
            start=samples.start(rows),
            fresh=fresh[rows],
            last=samples.age[rows] + 1 >= config.segments,
        )
        if self.parts == 1:
            loss.backward()
        else:
            wanted = list(self.model.parameters())
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        return outcome, state, gradients

    def _update(self) -> None:
        """Take one optimiser step, or skip it and its samples if the gradient is not finite."""
        config = self.config.train
        warm = min(1.0, (self.step + 1) / max(config.warmup, 1))
        rate = config.learning_rate * warm * SCHEDULES[config.schedule](self.progress)
        for optimizer in self.optimizers:
            if isinstance(optimizer, NorMuon):
                optimizer.advance(self.step, self.progress)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("share", 1.0)
        norm = full_tensor(nn.utils.clip_grad_norm_(self.model.parameters(), config.clip))
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
        self.samples = None  # new ones take the place of all, again of all ages

    def _log(self, metrics: dict[str, float], reporter: Reporter | None) -> None:
        row = self.history.add(metrics, self.step, self.seconds)
        if reporter is None:
            return
        if self.history.is_row(self.step):
            reporter.record(row)
        left = self.seconds * (1 - self.progress) / max(self.progress, 1e-9)
        if validation := {n: v for n, v in metrics.items() if n.startswith("test_")}:
            reporter.look(validation, row)
        units = self.step * self.config.train.batch_size * self.config.units_per_sample
        pace = {
            f"{self.config.unit}s_per_second": units / max(self.seconds, 1e-9),
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            **peak_memory(self.device),
        }
        figures = {**self.history.last_validation, **row, **pace}
        reporter.show(figures, self.progress, left)
