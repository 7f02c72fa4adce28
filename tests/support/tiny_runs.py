"""Runs of the command `train` in processes of their own, which are disturbed while they save."""

import builtins
import contextlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from tasks.checkpoints import file as checkpoint
from tasks.checkpoints.checkpoint import NAME, Checkpoint
from tasks.experiments import run as experiment
from tasks.puzzles.experiment import GridExperiment
from tasks.sudoku.__main__ import main
from tasks.training.trainer import Trainer

# Forked from a process that has torch loaded already.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "tiny_runs",
        "tasks.puzzles.commands",
        "tasks.serving",
        "tasks.sudoku.task",
        "tasks.training.trainer",
        "torch.utils.tensorboard.writer",
    ]
)
OPTIONS = (
    "--preset", "tiny", "--train-puzzles", "32", "--test-puzzles", "8", "--width", "8",
    "--save-every", "1e-9", "--batch-size", "4", "--train-max-steps", "1", "--recorded-steps", "1",
)  # fmt: skip
WRITES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
# After which save of a process it is disturbed.
SAVES = 3

Disturbance = tuple[str, Any]
"""The name of a function of this file, without its leading underscore, and its argument."""


def start(
    folder: Path, arguments: tuple[str, ...], disturbance: Disturbance | None = None
) -> ForkServerProcess:
    """Start `train` with these arguments; what it prints is in the file `output` of the folder."""
    process = CONTEXT.Process(target=_work, args=(folder, arguments, disturbance))
    process.start()
    return process


def run(
    folder: Path, arguments: tuple[str, ...], disturbance: Disturbance | None = None
) -> tuple[int, str]:
    """Run `train` to its end; its exit status and what it printed."""
    process = start(folder, arguments, disturbance)
    try:
        process.join()
    finally:
        process.kill()
    assert process.exitcode is not None
    return process.exitcode, (folder / "output").read_text(errors="replace")


def new(folder: Path, steps: int = 8, *more: str) -> tuple[str, ...]:
    """The arguments of a new run in the folder `run`."""
    return ("train", *OPTIONS, "--steps", str(steps), "--out", str(folder / "run"), *more)


def resumed(folder: Path, name: str = "checkpoint.safetensors") -> tuple[str, ...]:
    """The arguments that go on with it."""
    return ("train", "--resume", str(folder / "run" / name))


def assert_same_end(run: Path, whole: Path, name: str = "checkpoint.safetensors") -> None:
    """Whether two runs have the same log, up to its times, and the same last checkpoint."""
    assert _losses(run) == _losses(whole)
    ended, expected = Checkpoint.load(run / name), Checkpoint.load(whole / name)
    for group, tensors in expected.tensors.items():
        for key, tensor in tensors.items():
            assert torch.equal(ended.tensors[group][key], tensor), (group, key)


def _losses(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if name != "minutes"} for row in rows]


def _work(folder: Path, arguments: tuple[str, ...], disturbance: Disturbance | None) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("XDG_CACHE_HOME", str(folder))
    # Plan, evaluation and pictures would take most of the time.
    GridExperiment.describe = lambda *_: None  # type: ignore[method-assign]
    experiment.run = lambda *given: experiment.train(*given)[2]
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    if disturbance is not None:
        name, argument = disturbance
        _at_a_save(lambda: globals()[f"_{name}"](folder, argument))
    sys.exit(main(list(arguments)))


def _at_a_save(act: Callable[[], object]) -> None:
    save, count = Trainer.save, 0

    def counting(self: Trainer, *given: Any, **named: Any) -> None:
        nonlocal count
        count += 1
        if count == SAVES:
            act()
        save(self, *given, **named)

    Trainer.save = counting  # type: ignore[method-assign]


def _death(folder: Path, moment: str) -> None:
    """Die at a chosen place of a save."""
    module, name = {
        "safetensors is writing": (checkpoint, "save_file"),
        "half of the file is written": (checkpoint, "save_file"),
        "the old file is not kept yet": (checkpoint, "hardlink"),
        "the new file has no name yet": (os, "replace"),
    }[moment]
    real = getattr(module, name)

    def replacement(*given: Any) -> None:
        if name == "replace" and Path(given[1]).name != NAME:
            real(*given)
            return
        if moment == "safetensors is writing":
            # The system kills a process whose file grows beyond this, in the middle of a write.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            half = (folder / "run" / NAME).stat().st_size // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))
        if name == "save_file":
            real(*given)
            os.truncate(given[1], os.stat(given[1]).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, replacement)


def _kill_at_event(folder: Path, number: int) -> None:
    """Die at the so-many-th change of the file system in the folder of the run."""
    left = number

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal left
        writes = (
            event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (event in WRITES or writes) and str(folder / "run") in str(given[0]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _kill_after(folder: Path, seconds: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default is to die
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _signals(folder: Path, numbers: tuple[int, ...]) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def _full_disk(folder: Path, saves: int) -> None:
    """No file may grow beyond 16 kB, half of a checkpoint, until so many saves later."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, hard))
    save, left = Trainer.save, saves

    def counting(self: Trainer, *given: Any, **named: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        save(self, *given, **named)

    Trainer.save = counting  # type: ignore[method-assign]


def _read_only(folder: Path, _: None) -> None:
    """The folder cannot be written any more; where root runs this, by another user."""
    for path in (folder / "run", *(folder / "run").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:
        os.seteuid(65534)


def _moved_away(folder: Path, _: None) -> None:
    (folder / "run").rename(folder / "moved")


def _clock(folder: Path, jump: float) -> None:
    real, monotonic = time.time, time.monotonic
    time.time = lambda: real() + jump
    time.monotonic = lambda: monotonic() + max(jump, 0.0)  # it never goes back


def _no_links(folder: Path, _: None) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise PermissionError("no links here")

    os.link = refuse  # type: ignore[assignment]


def _closed_terminal(folder: Path, _: None) -> None:
    """What is printed meets a pipe that nobody reads, and the terminal says that it is gone."""
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)
    os.dup2(write, 2)
    os.kill(os.getpid(), signal.SIGHUP)


def _no_print(folder: Path, _: None) -> None:
    """As `_closed_terminal`, but nobody says it."""
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)
    with contextlib.suppress(BrokenPipeError):
        builtins.print("x", flush=True)
