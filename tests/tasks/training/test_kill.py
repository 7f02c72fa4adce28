"""Killed without warning at any moment, a run goes on from what it saved, to the same numbers."""

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from tasks.checkpoints import file as checkpoint
from tasks.checkpoints import manager as manager
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.checkpoints.manager import NAME, load_newest
from tasks.puzzles.task import Batches
from tasks.sudoku.board import Board
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.generate import generate
from tasks.sudoku.task import SudokuTask
from tasks.training.trainer import Trainer

# Forked from a process that has torch loaded already: 50 starts take no 50 imports.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "tasks.training.trainer", "tasks.sudoku.task"])


def make(folder: Path, steps: int) -> Trainer:
    folder.mkdir(exist_ok=True)
    config = SudokuConfig.of(
        side=4, min_clues=6, max_clues=8, steps=steps, width=8, batch_size=4, refill=True,
        save_every=1e-9,
    )  # fmt: skip
    puzzles, task = generate(16, Board.of(4), clues=(6, 8), seed=3), SudokuTask()
    held_out = task.encode(puzzles[:4], config)
    batches = Batches(task.sampler(puzzles, config), len(puzzles), held_out, max_steps=4)
    torch.manual_seed(0)
    return Trainer(batches, config.build(), config, folder, max_steps=2, meta={})


def work(folder: Path, steps: int, death: str = "") -> None:
    """One process: train, or go on, saving after every step."""
    torch.set_num_threads(1)
    trainer = make(folder, steps)
    if death:
        die(trainer, death)
    if trainer.path.is_file():
        trainer.restore(load_newest(trainer.path))
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        trainer.run()


def die(trainer: Trainer, death: str) -> None:
    """Let the third save end in this process's death, at a chosen place."""
    module, name = {
        "safetensors is writing": (checkpoint, "save_file"),
        "half of the file is written": (checkpoint, "save_file"),
        "the old file is not kept yet": (checkpoint, "hardlink"),
        "the new file has no name yet": (os, "replace"),
    }[death]
    real = getattr(module, name)

    def replacement(*args: Any) -> None:
        new_name = name != "replace" or Path(args[1]).name == NAME
        if trainer.step < 3 or not new_name:
            real(*args)
            return
        if death == "safetensors is writing":
            # The system kills a process whose file grows beyond this, in the middle of a write.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            half = trainer.path.stat().st_size // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))
        if name == "save_file":
            real(*args)
            os.truncate(args[1], os.stat(args[1]).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, replacement)


def losses(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if name != "minutes"} for row in rows]


def names(folder: Path) -> set[str]:
    """All that lies in a folder, hidden files included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_same_end(folder: Path, whole: Path) -> None:
    kept, expected_names = (
        {name for name in names(each) if "tensorboard" not in name} for each in (folder, whole)
    )
    assert kept == expected_names
    assert losses(folder) == losses(whole)
    ended, expected = Checkpoint.load(folder / NAME), Checkpoint.load(whole / NAME)
    for group, tensors in expected.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(ended.tensors[group][name], tensor), (group, name)


def run(*args: Any) -> int | None:
    process = CONTEXT.Process(target=work, args=args)
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, 18) == 0
    return folder


@pytest.mark.parametrize(
    "death",
    [
        "safetensors is writing",
        pytest.param("half of the file is written", marks=pytest.mark.slow),
        "the old file is not kept yet",
        "the new file has no name yet",
    ],
)
def test_killed_while_it_saves(death: str, tmp_path: Path, uninterrupted: Path) -> None:
    writing = death == "safetensors is writing"
    assert run(tmp_path, 18, death) == -(signal.SIGXFSZ if writing else signal.SIGKILL)
    assert Checkpoint.load(tmp_path / NAME).meta["step"] == 2
    # It has a name of its own for what it writes, which is left.
    assert any("/.tmp" in name for name in names(tmp_path)) == writing
    assert run(tmp_path, 18) == 0
    assert_same_end(tmp_path, uninterrupted)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, uninterrupted: Path) -> None:
    kill_at_random(tmp_path, kills=3, steps=18)
    assert_same_end(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.long  # fifty processes, each of which loads torch
def test_killed_fifty_times(tmp_path: Path) -> None:
    assert run(tmp_path / "whole", 300) == 0
    kill_at_random(tmp_path / "parts", kills=50, steps=300)
    assert_same_end(tmp_path / "parts", tmp_path / "whole")


def kill_at_random(folder: Path, kills: int, steps: int) -> None:
    """Each time some saves after the process began, and a moment more."""
    random, path = Random(0), folder / manager.NAME
    for _ in range(kills):
        process = CONTEXT.Process(target=work, args=(folder, steps))
        process.start()
        for _ in range(random.randint(1, 4)):
            before = changed(path)
            while changed(path) == before and process.is_alive():
                time.sleep(0.001)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert run(folder, steps) == 0


def changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0
