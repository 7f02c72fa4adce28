"""A save that is killed at any of its file operations costs no checkpoint and leaves no file."""

import multiprocessing
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.checkpoints.manager import CheckpointManager, load_newest, sweep
from tasks.checkpoints.sharded_manager import ShardedCheckpointManager
from tasks.distributed import Group

# A process in which torch is loaded and runs no threads, so that it can be forked.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "tasks.checkpoints.sharded_manager"])
MANAGERS = {"file": CheckpointManager, "sharded": ShardedCheckpointManager}
OPERATIONS = ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync", "open")


def save(folder: Path, form: str, step: int, best: bool = False) -> None:
    tensors = {"model": {"a": torch.full((8,), float(step))}}
    manager = MANAGERS[form](folder, Group(), keep_last=3)
    manager.save(Checkpoint(tensors, {"step": step}), best)
    manager.finish()
    manager.require_saved()


def in_fork(action: Callable[[], object]) -> int:
    """Do something in a forked process; its exit code."""
    process = os.fork()
    if not process:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def die_at(operation: int) -> None:
    """Let this process be killed just before its so many-th change of a folder."""
    left = operation

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*args: Any, **options: Any) -> Any:
            nonlocal left
            if real is not opened or args[1] & os.O_CREAT:
                left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return replacement

    opened = os.open
    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))


def work(folder: Path, form: str) -> None:
    torch.set_num_threads(1)
    whole = folder / "whole"
    whole.mkdir()
    for step in (1, 2, 3, 4):
        assert in_fork(lambda step=step: save(whole, form, step, best=step == 1)) == 0  # type: ignore[misc]
    code, kills = -signal.SIGKILL, 0
    while code == -signal.SIGKILL:
        place = folder / str(kills)
        shutil.copytree(whole, place)
        code = in_fork(lambda: (die_at(kills), save(place, form, 5, best=True)))  # noqa: B023
        check(place, form, whole)
        kills += 1
    assert code == 0
    assert kills > 10


def check(folder: Path, form: str, whole: Path) -> None:
    """That a run can go on, has its best state, and has nothing else."""
    sweep(folder)
    before = {path.name for path in whole.iterdir()}
    assert {path.name for path in folder.iterdir()} <= before
    manager = MANAGERS[form](folder, Group())
    with warnings.catch_warnings(action="error"):  # no damage to go round
        newest = load_newest(manager.newest).meta["step"]
    best = Checkpoint.load(manager.best).meta["step"]
    assert (newest, best) in {(4, 1), (4, 5), (5, 5)}
    assert in_fork(lambda: save(folder, form, 6)) == 0
    assert Checkpoint.load(manager.newest).meta["step"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("form", ["file", "sharded"])
def test_a_save_is_killed_at_each_of_its_operations(form: str, tmp_path: Path) -> None:
    process = CONTEXT.Process(target=work, args=(tmp_path, form))
    process.start()
    process.join()
    assert process.exitcode == 0
