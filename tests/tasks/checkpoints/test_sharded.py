"""Shards: what is kept, what damage does, and that nothing in them is ever executed."""

import contextlib
import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as dcp

from tasks.checkpoints import sharded
from tasks.checkpoints.checkpoint import FOLDER, Checkpoint
from tasks.checkpoints.file import CheckpointError
from tasks.checkpoints.manager import NotSaved, load_newest
from tasks.checkpoints.sharded_manager import ShardedCheckpointManager
from tasks.distributed import Group
from tasks.experiments.folder import new_folder
from tasks.puzzles.commands import Commands
from tasks.puzzles.experiment import Batches
from tasks.runs import export
from tasks.serving import serve
from tasks.sudoku.board import Board
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.generate import generate
from tasks.sudoku.task import SudokuTask
from tasks.training.trainer import Interrupted, Trainer

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "tasks.training.trainer", "tasks.sudoku.task"])
SHARD = "shard-00001-model-00001-of-00001.safetensors"


def state(step: int) -> Checkpoint:
    tensors = {
        "model": {"a": torch.full((8,), float(step)), "b": torch.ones(2, 3).bfloat16()},
        "random": {"data": torch.arange(5, dtype=torch.uint8)},
        "optimizer": {"0.step": torch.tensor(float(step))},
    }
    return Checkpoint(tensors, {"step": step, "history": [{"loss": 0.1, "worst": None}]})


def kept(folder: Path, *steps: int) -> ShardedCheckpointManager:
    manager = ShardedCheckpointManager(folder, Group())
    for step in steps:
        manager.save(state(step))
    manager.finish()
    return manager


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    kept(tmp_path, 7)
    found, expected = Checkpoint.load(tmp_path / FOLDER), state(7)
    assert found.meta == expected.meta
    assert {g: set(t) for g, t in found.tensors.items()} == {
        g: set(t) for g, t in expected.tensors.items()
    }
    for group, tensors in expected.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(found.tensors[group][name], tensor)
            assert found.tensors[group][name].dtype == tensor.dtype


def test_the_newest_the_one_before_and_the_best_are_kept(tmp_path: Path) -> None:
    manager = ShardedCheckpointManager(tmp_path, Group())
    for step, best in ((1, False), (2, True), (3, False), (4, False)):
        manager.save(state(step), best)
    manager.finish()
    assert manager.step == 4
    steps = {path.name: Checkpoint.load(path).meta["step"] for path in tmp_path.iterdir()}
    assert steps == {"checkpoint": 4, "checkpoint-previous": 3, "checkpoint-best": 2}


def test_training_goes_on_while_the_write_proceeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it changes meanwhile is not in the checkpoint."""
    go, real = threading.Event(), sharded.checksum

    def slow(path: Path) -> str:
        assert go.wait(60)
        return real(path)

    monkeypatch.setattr(sharded, "checksum", slow)
    manager, checkpoint = ShardedCheckpointManager(tmp_path, Group()), state(1)
    manager.save(checkpoint)
    assert manager.step is None
    assert not manager.newest.exists()
    checkpoint.tensors["model"]["a"] += 100
    go.set()
    manager.finish()
    assert manager.step == 1
    assert torch.equal(Checkpoint.load(manager.newest).tensors["model"]["a"], torch.ones(8))


def truncate(folder: Path) -> None:
    os.truncate(folder / SHARD, (folder / SHARD).stat().st_size - 7)


def flip_in_weights(folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


def flip_in_meta(folder: Path) -> None:
    text = (folder / sharded.MANIFEST).read_text()
    (folder / sharded.MANIFEST).write_text(text.replace("step", "stop", 1))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut short": truncate,
    "a bit of the weights": flip_in_weights,
    "a bit of the manifest": flip_in_meta,
    "no shard": lambda folder: (folder / SHARD).unlink(),
    "one more": lambda folder: shutil.copy(folder / SHARD, folder / SHARD.replace("1", "9", 1)),
    "no manifest": lambda folder: (folder / sharded.MANIFEST).unlink(),
    "a garbled manifest": lambda folder: (folder / sharded.MANIFEST).write_text("[1, 2"),
    "killed between two renames": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_falls_back_to_the_checkpoint_before_and_says_so(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    manager = kept(tmp_path, 1, 2)
    damage(manager.newest)
    with pytest.raises(CheckpointError):
        Checkpoint.load(manager.newest)
    with pytest.warns(UserWarning, match=r"Refused: .*Going on from .*of step 1"):
        assert load_newest(manager.newest).meta["step"] == 1
    manager.save(state(3))
    manager.finish()
    # What was damaged has not taken the place of the good one.
    assert Checkpoint.load(manager.newest).meta["step"] == 3
    if damage is not shutil.rmtree:
        assert Checkpoint.load(manager.older[0]).meta["step"] == 1
        assert (tmp_path / "checkpoint-refused").is_dir()


class Evil:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_in_the_folder_is_never_executed(tmp_path: Path) -> None:
    """Torch's own readers execute one of the names below."""
    proof = tmp_path / "executed"
    folder = kept(tmp_path, 1).newest
    for name in (".metadata", "__0_0.distcp", "model.pt"):
        (folder / name).write_bytes(pickle.dumps(Evil(proof)))
    assert Checkpoint.load(folder).meta["step"] == 1
    (folder / SHARD).write_bytes(pickle.dumps(Evil(proof)))
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoint.load(folder)
    (folder / sharded.MANIFEST).write_bytes(pickle.dumps(Evil(proof)))
    with pytest.raises(CheckpointError, match="missing or damaged"):
        Checkpoint.load(folder)
    assert not proof.exists()
    # The trap works.
    pickle.loads((folder / SHARD).read_bytes())
    assert proof.exists()


def test_a_checkpoint_of_torch_itself_is_refused_unread(tmp_path: Path) -> None:
    proof, folder = tmp_path / "executed", tmp_path / "foreign"
    sharded.ignore_warning_of_one_process()
    dcp.save({"a": torch.ones(2)}, checkpoint_id=folder, no_dist=True)
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(proof)))
    with pytest.raises(CheckpointError, match=r"as it has .*distcp without a manifest\.json"):
        Checkpoint.load(folder)
    assert not proof.exists()


def test_a_shard_that_matches_its_sum_but_is_no_safetensors_file(tmp_path: Path) -> None:
    """Whoever can write a manifest can name any content; that is no way in either."""
    proof = tmp_path / "executed"
    folder = kept(tmp_path, 1).newest
    (folder / SHARD).write_bytes(pickle.dumps(Evil(proof)))
    meta, _ = sharded._manifest(folder)
    sharded.write_manifest(folder, meta, {SHARD: sharded.checksum(folder / SHARD)})
    with pytest.raises(CheckpointError, match="not a readable"):
        Checkpoint.load(folder)
    assert not proof.exists()


def make(folder: Path, **options: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    config = SudokuConfig.of(
        side=4, min_clues=6, max_clues=8, width=8, batch_size=4, refill=True,
        **{"steps": 12, "save_every": 1e-9, "checkpoints": "sharded", **options},
    )  # fmt: skip
    puzzles, task = generate(16, Board.of(4), clues=(6, 8), seed=3), SudokuTask()
    held_out = task.encode(puzzles[:4], config)
    batches = Batches(task.sampler(puzzles, config), len(puzzles), held_out, max_steps=4)
    torch.manual_seed(0)
    meta = {"task": "sudoku", "preset": "tiny", "config": config.to_json()}
    return Trainer(batches, config.build(), config, folder, max_steps=2, meta=meta)


def stop_after(trainer: Trainer, step: int) -> Trainer:
    inner = trainer.task.batch

    def batch(*args: Any) -> Any:
        if trainer.step >= step:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(*args)

    trainer.task.batch = batch  # type: ignore[method-assign]
    return trainer


@pytest.mark.parametrize("first", ["sharded", "file"])
def test_an_interrupted_run_goes_on_in_either_form(tmp_path: Path, first: str) -> None:
    whole = make(tmp_path / "whole")
    whole.run()
    begun = stop_after(make(tmp_path / "parts", checkpoints=first), 3)
    with pytest.raises(Interrupted):
        begun.run()
    second = "file" if first == "sharded" else "sharded"
    flags = ["--resume", str(begun.path), f"--checkpoints={second}"]
    start = Commands(SudokuTask(), serve).start(flags)
    assert (start.folder, start.config.train.checkpoints) == (begun.folder, second)
    ended = make(tmp_path / "parts", checkpoints=second)
    assert start.checkpoint is not None
    ended.restore(start.checkpoint)
    assert 0 < ended.step < 12
    ended.run()
    expected = Checkpoint.load(whole.path)
    for group, tensors in Checkpoint.load(ended.path).tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, expected.tensors[group][name]), (group, name)


def test_weights_are_exported_and_the_folder_is_taken(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.run()
    exported = Checkpoint.load(export(trainer.path, tmp_path / "model.safetensors"))
    for name, tensor in exported.tensors["average"].items():
        assert torch.equal(tensor, trainer.average.state_dict()[name])
    with pytest.raises(ValueError, match=r"already holds a run.*--resume .*checkpoint`"):
        new_folder(tmp_path, "sudoku", "tiny")


def test_a_disk_that_is_full_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path)
    real = sharded.checksum

    def refuse(path: Path) -> str:
        if trainer.manager.saving in (4, 5):  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path)

    monkeypatch.setattr(sharded, "checksum", refuse)
    with pytest.warns(UserWarning, match=r"Step [45] is not saved: .*No space left") as said:
        trainer.run()
    assert sum("is not saved" in str(warning.message) for warning in said) == 2
    assert Checkpoint.load(trainer.path).meta["step"] == 12
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.filterwarnings("ignore:TensorBoard's file")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_folder_that_can_no_longer_be_written(tmp_path: Path) -> None:
    """A file in its place: that stops root as well."""
    trainer, moved = make(tmp_path / "run"), tmp_path / "moved"
    inner = trainer._train_segment

    def segment() -> dict[str, float]:
        if trainer.step == 5:
            trainer.manager.finish()
            (tmp_path / "run").rename(moved)
            (tmp_path / "run").write_text("")
        return inner()

    trainer._train_segment = segment  # type: ignore[method-assign]
    with (
        pytest.warns(UserWarning, match=r"Step \d+ is not saved"),
        pytest.raises(NotSaved, match="last state of this run is lost"),
    ):
        trainer.run()
    assert trainer.step == 12
    assert Checkpoint.load(moved / FOLDER).meta["step"] == 5


def test_a_write_that_dies_in_torch_is_a_failure_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = kept(tmp_path, 1)

    def write(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(dcp.HuggingFaceStorageWriter, "write_data", write)
        manager.save(state(2))
        with pytest.warns(UserWarning, match="Step 2 is not saved: .*No space left"):
            manager.finish()
        with pytest.raises(NotSaved, match="is intact, of step 1"):
            manager.require_saved()
    manager.save(state(3))
    manager.require_saved()
    assert Checkpoint.load(manager.newest).meta["step"] == 3


DEATHS = {
    "files are being written": (dcp.HuggingFaceStorageWriter, "write_data"),
    "the manifest is missing": (sharded, "write_manifest"),
    "the old folder has its new name, the new one none": (Path, "rename"),
}


def work(folder: Path, death: str = "") -> None:
    """One process: train, or go on, saving after every step; die amid the third save."""
    torch.set_num_threads(1)
    trainer = make(folder, steps=9)
    if death:
        where, name = DEATHS[death]
        real = getattr(where, name)

        def fatal(*args: Any, **options: Any) -> Any:
            last = name != "rename" or args[0].name.endswith(".tmp")
            if trainer.manager.step == 2 and last and "best" not in str(args[0]):  # type: ignore[attr-defined]
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(where, name, fatal)
    if (folder / FOLDER).exists() or (folder / "checkpoint-previous").exists():
        trainer.restore(load_newest(trainer.path))
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        trainer.run()


def run(*args: Any) -> int | None:
    process = CONTEXT.Process(target=work, args=args)
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


def die_amid_a_write(folder: Path) -> None:
    manager = kept(folder, 1)
    sharded.checksum = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    manager.save(state(2))
    manager.finish()


def test_killed_amid_a_write_the_checkpoint_before_is_intact(tmp_path: Path) -> None:
    process = CONTEXT.Process(target=die_amid_a_write, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "checkpoint.tmp").is_dir()
    assert load_newest(tmp_path / FOLDER).meta["step"] == 1
    kept(tmp_path, 3)
    assert load_newest(tmp_path / FOLDER).meta["step"] == 3
    assert not (tmp_path / "checkpoint.tmp").exists()


@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS)
def test_killed_while_it_saves(death: str, tmp_path: Path, uninterrupted: Path) -> None:
    assert run(tmp_path, death) == -signal.SIGKILL
    assert load_quietly(tmp_path / FOLDER).meta["step"] == 2
    assert run(tmp_path) == 0
    assert losses(tmp_path) == losses(uninterrupted)
    ended, expected = (Checkpoint.load(f / FOLDER) for f in (tmp_path, uninterrupted))
    for group, tensors in expected.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(ended.tensors[group][name], tensor), (group, name)
    assert not list(tmp_path.glob("*.tmp"))


def load_quietly(path: Path) -> Checkpoint:
    """What a run would go on from, without moving anything."""
    return Checkpoint.load(path if path.exists() else path.with_name("checkpoint-previous"))


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
