"""The training loop: it learns, stops on request, and resumes to the same numbers."""

import dataclasses
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from parameters import slow

from models import GridModel
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.checkpoints.file import CheckpointError
from tasks.puzzles.experiment import Batches
from tasks.sudoku.board import Board
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.generate import generate
from tasks.sudoku.task import SudokuTask
from tasks.training.samples import EXPLORED, least_segments
from tasks.training.stop_signal import Interrupted
from tasks.training.task import SourceLost
from tasks.training.trainer import MAX_SKIPPED, Diverged, Trainer

BOARD = Board.of(4)
PUZZLES = generate(16, BOARD, clues=(6, 8), seed=3)


CONFIG = SudokuConfig.of(side=4, min_clues=6, max_clues=8)


class Recorder(Batches):
    """Remembers the batches it gave, and can interrupt the run after some of them."""

    def __init__(self, interrupt_after: int | None = None):
        task = SudokuTask()
        sampler, held_out = task.sampler(PUZZLES, CONFIG), task.encode(PUZZLES[:4], CONFIG)
        super().__init__(sampler, len(PUZZLES), held_out, max_steps=4)
        self.given: list[torch.Tensor] = []
        self.interrupt_after = interrupt_after

    def batch(
        self, size: int, generator: torch.Generator, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, target = super().batch(size, generator, progress)
        self.given.append(x)
        if len(self.given) == self.interrupt_after:
            os.kill(os.getpid(), signal.SIGINT)
        return x, target


def make(folder: Path, task: Batches, steps: int = 12, **options: object) -> Trainer:
    folder.mkdir(exist_ok=True)
    config = SudokuConfig.of(
        side=4, min_clues=6, max_clues=8, steps=steps, width=8, batch_size=4
    ).adapted(**options)
    torch.manual_seed(config.train.seed)
    return Trainer(
        task=task, model=config.build(), config=config, folder=folder, max_steps=2, meta={}
    )


def test_overfits_one_batch(tmp_path: Path) -> None:
    class OneBatch(Recorder):
        def batch(
            self, size: int, generator: torch.Generator, progress: float
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return super().batch(size, torch.Generator().manual_seed(0), progress)

    task = OneBatch()
    trainer = make(tmp_path, task, steps=120, learning_rate=5e-3)
    trainer.run()
    assert trainer.history.rows[-1]["loss"] < 0.1 * trainer.history.rows[0]["loss"]


def test_a_row_of_the_log_is_the_mean_since_the_last(tmp_path: Path) -> None:
    class Counting(Recorder):
        steps = 0.0

        def validate(self, model: GridModel) -> dict[str, float]:
            return {}

        def metrics(self, right: torch.Tensor) -> dict[str, float]:
            self.steps += 1
            return {"number": self.steps if self.steps != 14 else math.nan}

    trainer = make(tmp_path, Counting(), steps=21)
    trainer.run()
    rows = [(row["step"], row["number"]) for row in trainer.history.rows]
    between = (12 + 13 + 15 + 16 + 17 + 18 + 19 + 20 + 21) / 9
    assert rows == [(1, 1.0), (11, sum(range(2, 12)) / 10), (21, between)]


@pytest.mark.parametrize("options", [{"start_noise": 0.5}, {"model": "eqr"}])
def test_looks_change_nothing(tmp_path: Path, options: dict[str, object]) -> None:
    class Blind(Recorder):
        def validate(self, model: GridModel) -> dict[str, float]:
            return {}

    runs = []
    for name, task in (("seeing", Recorder()), ("blind", Blind())):
        runs.append(make(tmp_path / name, task, **options))
        runs[-1].run()
    seeing, blind = runs
    assert any("test_exact" in row for row in seeing.history.rows)
    for one, other in zip(seeing.model.parameters(), blind.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_state_that_does_not_fit_is_refused_with_one_kind_of_error(tmp_path: Path) -> None:
    trainer = make(tmp_path, Recorder(), steps=2, model="reasoner")
    trainer.run()
    good = Checkpoint.load(trainer.path)
    changes: list[tuple[str, Any]] = []
    for group, tensors in good.tensors.items():
        name, tensor = list(tensors.items())[-1]
        for other in (tensor.flatten()[None, :3], tensor.to(torch.int8)):
            changes.append((group, {**tensors, name: other}))
        if group != "random":
            changes.append((group, {**tensors, "evil": tensor}))
        if group != "slots":
            changes.append((group, {key: tensors[key] for key in tensors if key != name}))
    slots = good.tensors["slots"]
    changes += [("slots", {**slots, "x": slots["x"] + 9}), ("slots", {"x": slots["x"]})]
    changes += [("slots", {**slots, "state.0": slots["state.0"].double()})]
    steps = {name: -t for name, t in good.tensors["optimizer"].items() if name.endswith("step")}
    changes += [("optimizer", {**good.tensors["optimizer"], **steps})]
    changes += [
        ("history", [{}]), ("history", [{"step": None}]), ("history", [{"step": 1, "test_a": 1}]),
        ("history", [{"step": 1e300}]), ("history", [{"step": math.nan}]),
        ("unlogged", [{"loss": None}]), ("unlogged", [{"loss": 1e308}] * 2),
        ("data", {"evil": {}}), ("data", {"train_data": 1}),
    ]  # fmt: skip
    for name, value in changes:
        parts = ({name: value}, {}) if name in good.tensors else ({}, {name: value})
        bad = Checkpoint(good.tensors | parts[0], good.meta | parts[1], good.path)
        with pytest.raises(CheckpointError, match=r"has no|do not fit"):
            trainer.restore(bad)
    trainer.restore(good)


def test_every_optimiser_is_saved_and_restored(tmp_path: Path) -> None:
    def trainer() -> Trainer:
        made = make(tmp_path, Recorder(), steps=3)
        parameters = list(made.model.parameters())
        made.optimizers = [torch.optim.AdamW(parameters[i::3]) for i in range(3)]
        return made

    first, second = trainer(), trainer()
    first.run()
    checkpoint = Checkpoint.load(first.path)
    second.restore(checkpoint)
    assert {"optimizer", "second_optimizer", "optimizer_3"} < set(checkpoint.tensors)
    for saved, restored in zip(first.optimizers, second.optimizers, strict=True):
        moments = [state["exp_avg"] for state in saved.state_dict()["state"].values()]
        again = [state["exp_avg"] for state in restored.state_dict()["state"].values()]
        assert moments
        for one, other in zip(moments, again, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("model", "refill"),
    [
        ("attractor", False),
        ("attractor", True),
        ("reasoner", True),
        slow("eqr", True),
        slow("reasoner", False),
        slow("eqr", False),
    ],
)
def test_interrupted_run_resumes_to_the_same_curve(
    tmp_path: Path, model: str, refill: bool
) -> None:
    options = {"model": model, "refill": refill, "segments": 3}
    whole = make(tmp_path / "whole", Recorder(), **options)
    whole.run()
    first = make(tmp_path / "parts", Recorder(interrupt_after=2), **options)
    with pytest.raises(Interrupted) as stopped:
        first.run()
    assert stopped.value.path == first.path
    second = make(tmp_path / "parts", Recorder(), **options)
    second.restore(Checkpoint.load(first.path))
    assert second.step == first.step < 12
    second.run()
    assert len(whole.task.given) > 3  # type: ignore[attr-defined]
    for given, expected in zip(second.task.given, whole.task.given[2:], strict=True):  # type: ignore[attr-defined]
        assert torch.equal(given, expected)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
    for name, value in whole.average.state_dict().items():
        assert torch.equal(second.average.state_dict()[name], value), name


def test_a_signal_in_the_last_step_leaves_the_evaluation_to_the_next_run(tmp_path: Path) -> None:
    first = make(tmp_path, Recorder(interrupt_after=1), segments=1, steps=1)
    with pytest.raises(Interrupted) as stopped:
        first.run()
    second = make(tmp_path, Recorder(), segments=1, steps=1)
    second.restore(Checkpoint.load(stopped.value.path))
    assert second.progress == 1
    second.run()
    assert second.step == first.step == 1


def test_a_share_of_samples_goes_on_although_the_head_would_end_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(share: float) -> int:
        monkeypatch.setattr("tasks.training.samples.EXPLORED", share)
        task = Recorder()
        options = {"model": "reasoner", "halting": "right", "refill": True, "segments": 4}
        trainer = make(tmp_path / str(share), task, steps=6, learning_rate=1e-6, **options)
        with torch.no_grad():
            trainer.model.halt.bias.fill_(50.0)  # type: ignore[union-attr,operator]
        trainer.run()
        return sum(map(len, task.given))

    assert given(0.0) == 6 * 4
    # Two to four segments each, instead of one, but for the first, which count as older.
    assert 2 * 4 <= given(1.0) <= 4 * 4


@pytest.mark.parametrize(("q_continue", "drawn"), [(40.0, 6 * 4), (60.0, 4 + 5)])
def test_q_learning_ends_samples_that_are_worth_more_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, q_continue: float, drawn: int
) -> None:
    """At a value of 50 of stopping: all in each step, or none before its last segment."""
    monkeypatch.setattr("tasks.training.samples.EXPLORED", 0.0)
    task = Recorder()
    options = {"model": "hrm", "halting": "q-learning", "refill": True, "segments": 4}
    trainer = make(tmp_path, task, steps=6, learning_rate=1e-6, **options)
    with torch.no_grad():
        trainer.model.halt.bias.copy_(torch.tensor([50.0, q_continue]))  # type: ignore[union-attr,operator]
    trainer.run()
    assert sum(map(len, task.given)) == drawn


def test_samples_that_go_on_have_a_random_number_of_segments() -> None:
    least = least_segments(50_000, 16, torch.Generator().manual_seed(0))
    explored = least[least > 0]
    assert len(explored) / len(least) == pytest.approx(EXPLORED, rel=0.05)
    assert explored.unique().tolist() == list(range(2, 17))
    assert explored.float().mean().item() == pytest.approx(9, rel=0.02)
    assert least_segments(8, 1, torch.Generator()).max() <= 2


def test_data_that_are_lost_leave_a_checkpoint_with_their_position(tmp_path: Path) -> None:
    class Lost(Recorder):
        went_to: object = None

        def batch(
            self, size: int, generator: torch.Generator, progress: float
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if len(self.given) == 3:
                raise SourceLost("Gone.")
            return super().batch(size, generator, progress)

        def state_dict(self) -> object:
            return {"given": len(self.given)}

        def load_state_dict(self, position: object) -> None:
            self.went_to = position

    first = make(tmp_path, Lost(), segments=1)
    with pytest.raises(SourceLost, match=f"^Gone. .* `train --resume {first.path}`"):
        first.run()
    second = make(tmp_path, Lost(), segments=1)
    second.restore(Checkpoint.load(first.path))
    assert second.step == 3
    assert second.task.went_to == {"given": 3}  # type: ignore[attr-defined]


def test_baseline_without_a_solve_takes_one_segment_per_batch(tmp_path: Path) -> None:
    task = Recorder()
    make(tmp_path, task, steps=3, model="transformer").run()
    assert len(task.given) == 3


def test_log_has_a_row_per_interval_and_nothing_else_is_left(tmp_path: Path) -> None:
    make(tmp_path, Recorder(), steps=40).run()
    names = {path.name for path in tmp_path.iterdir()}
    others = {"checkpoint-previous.safetensors", "checkpoint-best.safetensors"}
    assert names - others == {"checkpoint.safetensors", "log.jsonl", "tensorboard"}
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) >= 3


@pytest.mark.parametrize("layout", ["candidates", "cells"])
@pytest.mark.parametrize(
    ("model", "backward"),
    [
        ("attractor", "phantom"),
        ("reasoner", "jacobian_free"),
        slow("attractor", "jacobian_free"),
        slow("reasoner", "phantom"),
        # Those have a gradient of their own, or none to choose.
        *(slow(model, "phantom") for model in ("trm", "hrm", "eqr", "unrolled", "transformer")),
    ],
)
def test_every_model_trains(tmp_path: Path, model: str, layout: str, backward: str) -> None:
    trainer = make(tmp_path, Recorder(), steps=6, model=model, layout=layout, backward=backward)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.run()
    after = dict(trainer.model.named_parameters())
    # The start of an implicit solve has no gradient, by definition.
    assert {name for name in before if torch.equal(before[name], after[name])} <= {"start"}
    assert all(row["loss"] == row["loss"] for row in trainer.history.rows)


class Poisoned(Recorder):
    """Gives inputs whose loss is not a number, in some steps."""

    def __init__(self, bad: range):
        super().__init__()
        self.bad = bad

    def poison(self, trainer: Trainer) -> None:
        """Make the model return NaN in these steps."""
        inner = trainer.model.forward

        def forward(*args: object, **kwargs: object) -> object:
            out = inner(*args, **kwargs)
            if trainer.step in self.bad:
                out = dataclasses.replace(out, logits=out.logits * float("nan"))
            return out

        trainer.model.forward = forward  # type: ignore[method-assign]


def test_a_step_without_a_finite_gradient_is_skipped(tmp_path: Path) -> None:
    task = Poisoned(range(3, 5))
    trainer = make(tmp_path, task, steps=8)
    task.poison(trainer)
    with pytest.warns(UserWarning, match="is skipped: its gradient is not finite"):
        trainer.run()
    assert trainer.step == 8
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert trainer.skipped == 0


def test_each_step_has_samples_of_all_ages_also_after_one_is_skipped(tmp_path: Path) -> None:
    task = Poisoned(range(3, 4))
    trainer = make(tmp_path, task, steps=8, segments=4)
    task.poison(trainer)
    with pytest.warns(UserWarning, match="is skipped"):
        trainer.run()
    # A new sample in each step, but all four in the first and after the skipped one.
    assert [len(x) for x in task.given] == [4, 1, 1, 1, 4, 1, 1, 1]


def test_a_gradient_that_stays_non_finite_ends_the_run(tmp_path: Path) -> None:
    task = Poisoned(range(3, 999))
    trainer = make(tmp_path, task, steps=99)
    task.poison(trainer)
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(Diverged, match="Lower"):
        trainer.run()
    assert trainer.step == 3 + MAX_SKIPPED


def test_the_average_of_a_short_run_forgets_the_initial_weights(tmp_path: Path) -> None:
    trainer = make(tmp_path, Recorder(), steps=40, averaging=0.999)
    first = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.run()

    def distance(weights: list[torch.Tensor]) -> float:
        average = trainer.average.module.parameters()
        return sum(
            float((a - b).detach().square().sum()) for a, b in zip(average, weights, strict=True)
        )

    assert distance([p.detach() for p in trainer.model.parameters()]) < 0.2 * distance(first)


def test_looks_at_held_out_data_are_not_training_time(tmp_path: Path) -> None:
    class Slow(Recorder):
        looks = 0

        def validate(self, model: GridModel) -> dict[str, float]:
            self.looks += 1
            time.sleep(0.1)
            return super().validate(model)

    task = Slow()
    trainer = make(tmp_path, task, steps=20)
    began = time.monotonic()
    trainer.run()
    assert task.looks >= 9
    assert trainer.seconds < time.monotonic() - began - 0.1 * task.looks
