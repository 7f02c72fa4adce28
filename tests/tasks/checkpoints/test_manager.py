"""What a run keeps: damage is found and gone round, and a full disk does not end training."""

import errno
import itertools
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tasks.checkpoints.checkpoint import BEST, NAME, PREVIOUS, REFUSED, Checkpoint
from tasks.checkpoints.file import CheckpointError
from tasks.checkpoints.manager import CheckpointManager, NotSaved, load_newest
from tasks.checkpoints.sharded_manager import ShardedCheckpointManager
from tasks.distributed import Group
from tasks.lm.config import LanguageConfig
from tasks.puzzles.commands import Commands
from tasks.puzzles.experiment import Batches
from tasks.serving import serve
from tasks.sudoku.board import Board
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.generate import generate
from tasks.sudoku.task import SudokuTask
from tasks.training.data_files import fingerprints, refuse_changed
from tasks.training.trainer import Trainer

CONFIG = SudokuConfig.of(
    side=4, min_clues=6, max_clues=8, steps=12, width=8, batch_size=4, save_every=1e-9
)
PUZZLES = generate(16, Board.of(4), clues=(6, 8), seed=3)


def state(step: int) -> Checkpoint:
    return Checkpoint({"model": {"a": torch.full((8,), float(step))}}, {"step": step})


def make(folder: Path, config: SudokuConfig = CONFIG) -> Trainer:
    folder.mkdir(exist_ok=True)
    task = SudokuTask()
    held_out = task.encode(PUZZLES[:4], config)
    batches = Batches(task.sampler(PUZZLES, config), len(PUZZLES), held_out, max_steps=4)
    torch.manual_seed(0)
    return Trainer(batches, config.build(), config, folder, max_steps=2, meta={})


def test_what_may_not_be_read_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = CheckpointManager(tmp_path, Group())
    for step in (1, 2):
        manager.save(state(step))
    real = Path.open

    def refuse(path: Path, *given: str) -> object:
        if path == manager.newest:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *given)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"may not be read \(Permission denied\). Make it"):
        load_newest(manager.newest)
    monkeypatch.undo()
    assert load_newest(manager.newest).meta["step"] == 2


def test_the_newest_the_one_before_and_the_best_are_kept(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, Group())
    for step, best in ((1, False), (2, True), (3, False), (4, False)):
        manager.save(state(step), best)
    steps = {path.name: Checkpoint.load(path).meta["step"] for path in tmp_path.iterdir()}
    assert steps == {
        NAME: 4, f"{PREVIOUS}.safetensors": 3, f"{BEST}.safetensors": 2
    }  # fmt: skip


@pytest.mark.parametrize("sharded", [False, True])
def test_as_many_stay_as_one_asks_for_and_the_newest_intact_one_is_read(
    sharded: bool, tmp_path: Path
) -> None:
    kind = ShardedCheckpointManager if sharded else CheckpointManager
    manager = kind(tmp_path, Group(), keep_last=4)
    for step in range(1, 7):
        manager.save(state(step))
    manager.finish()
    paths = [manager.newest, *manager.older]
    assert [path.stem.removeprefix("checkpoint") for path in paths] == [
        "", "-previous", "-previous-2", "-previous-3",
    ]  # fmt: skip
    assert set(paths) == set(tmp_path.iterdir())
    assert [Checkpoint.load(path).meta["step"] for path in paths] == [6, 5, 4, 3]
    truncate_all(paths[:3])
    with pytest.warns(UserWarning, match="Going on from .*previous-3.*, of step 3"):
        assert load_newest(manager.newest).meta["step"] == 3
    truncate_all(paths[3:])
    with pytest.raises(CheckpointError, match="checkpoint-previous-3"):
        load_newest(manager.newest)


def truncate_all(paths: list[Path]) -> None:
    for path in paths:
        path = path / "manifest.json" if path.is_dir() else path
        path.write_bytes(truncate(path.read_bytes()))


def test_links_are_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", no_links)
    test_the_newest_the_one_before_and_the_best_are_kept(tmp_path)


def truncate(content: bytes) -> bytes:
    return content[:-7]


def flip_in_weights(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def flip_in_meta(content: bytes) -> bytes:
    at = content.index(b"step")
    return content[:at] + b"stop" + content[at + 4 :]


@pytest.mark.parametrize("damage", [truncate, flip_in_weights, flip_in_meta])
def test_damage_falls_back_to_the_checkpoint_before_and_says_so(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    manager = CheckpointManager(tmp_path, Group())
    manager.save(state(1))
    manager.save(state(2))
    manager.newest.write_bytes(damage(manager.newest.read_bytes()))
    with pytest.warns(UserWarning, match="Refused: .*(damaged|truncated).*of step 1.*refused"):
        assert load_newest(manager.newest).meta["step"] == 1
    manager.save(state(3))
    # The damaged file has not taken the place of the good one.
    assert Checkpoint.load(manager.newest).meta["step"] == 3
    assert Checkpoint.load(manager.older[0]).meta["step"] == 1
    assert (tmp_path / f"{REFUSED}.safetensors").is_file()


def test_every_flipped_bit_is_found_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / NAME
    state(1).save(path)
    whole = path.read_bytes()
    found = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            read = Checkpoint.load(path)
        except CheckpointError:
            found += 1
        else:  # a space of the header may have become another
            assert read.meta == {"step": 1}
            assert torch.equal(read.tensors["model"]["a"], torch.ones(8))
    assert found > len(whole) - 8


def test_without_an_earlier_checkpoint_damage_is_an_error(tmp_path: Path) -> None:
    state(1).save(tmp_path / NAME)
    (tmp_path / NAME).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="truncated"):
        load_newest(tmp_path / NAME)


@pytest.mark.parametrize("sharded", [False, True])
def test_intact_checkpoints_are_offered_by_name_where_the_newest_ones_are_damaged(
    sharded: bool, tmp_path: Path
) -> None:
    kind = ShardedCheckpointManager if sharded else CheckpointManager
    manager = kind(tmp_path, Group())
    for step, best in ((1, True), (2, False), (3, False)):
        manager.save(state(step), best)
    manager.finish()
    other = CheckpointManager if sharded else ShardedCheckpointManager
    begun = other(tmp_path, Group())  # the run was once in the other form
    begun.save(state(0))
    begun.finish()
    truncate_all([manager.newest, *manager.older])
    with pytest.raises(CheckpointError) as refused:
        load_newest(manager.newest)
    for path, step in ((manager.best, 1), (begun.newest, 0)):
        offer = f"{path} is intact, of step {step}: go on from it with `--resume {path}`."
        assert offer in str(refused.value)
    assert str(refused.value).count("is intact") == 2
    assert load_newest(manager.best).meta["step"] == 1


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what is saved when, nor which checkpoint is the newest."""
    config = CONFIG.changed(save_every=1000.0, steps=4)
    plain = make(tmp_path / "plain", config)
    plain.run()
    jumps = itertools.cycle([0.0, 4e9, 1.0, 2e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    trainer = make(tmp_path / "jumping", config)
    real, saved = trainer.manager.save, []

    def save(checkpoint: Checkpoint, best: bool = False) -> None:
        real(checkpoint, best)
        saved.append((checkpoint.meta["step"], best))
        for path in (tmp_path / "jumping").iterdir():
            os.utime(path, (next(jumps), next(jumps)))

    trainer.manager.save = save  # type: ignore[method-assign]
    trainer.run()
    best = next(row["step"] for row in plain.history.rows if "test_exact" in row)
    assert saved == [(best, True), (4, False)]
    assert 0 < trainer.seconds < 60
    assert load_newest(trainer.path).meta["step"] == 4
    for name, tensor in plain.average.state_dict().items():
        assert torch.equal(tensor, trainer.average.state_dict()[name])


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process can grow beyond 8 kB, which is more than a log and less than a
    checkpoint."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    others = set(threading.enumerate())
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    yield
    for writer in set(threading.enumerate()) - others:
        writer.join(10)  # it dies of the full disk, and not during a later test
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings("ignore:TensorBoard's file")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_full_to_the_end(tmp_path: Path, full_disk: None) -> None:
    trainer = make(tmp_path)
    with (
        pytest.warns(UserWarning, match=r"Step \d+ is not saved: .*File too large.*Training"),
        pytest.raises(NotSaved, match=r"last state of this run is lost.*no checkpoint"),
    ):
        trainer.run()
    assert trainer.step == 12
    assert not list(tmp_path.glob("*.safetensors*"))


def test_a_disk_that_is_full_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.checkpoints import file as checkpoint

    trainer = make(tmp_path)
    real, seen = checkpoint.save_file, []

    def save_file(*args: object) -> None:
        if 4 <= trainer.step < 7:
            seen.append(Checkpoint.load(trainer.path).meta["step"])
            Path(str(args[1])).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    with pytest.warns(UserWarning, match=r"Step [456] is not saved: .*No space left"):
        trainer.run()
    assert set(seen) == {3}
    assert Checkpoint.load(trainer.path).meta["step"] == 12
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.filterwarnings("ignore:TensorBoard's file")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_folder_that_can_no_longer_be_written(tmp_path: Path) -> None:
    """A file in its place: that stops root as well."""
    trainer = make(tmp_path / "run")
    moved = tmp_path / "moved"
    inner = trainer._train_segment

    def segment() -> dict[str, float]:
        if trainer.step == 5:
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
    assert Checkpoint.load(moved / NAME).meta["step"] == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_to_write(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, Group())
    manager.save(state(1))
    tmp_path.chmod(0o500)
    try:
        with pytest.warns(UserWarning, match="Step 2 is not saved"):
            manager.save(state(2))
        with pytest.raises(NotSaved, match="intact, of step 1"):
            manager.require_saved()
    finally:
        tmp_path.chmod(0o700)


def test_a_log_that_cannot_be_written_for_a_while_is_complete_all_the_same(tmp_path: Path) -> None:
    from tasks.reports.logger import Reporter

    with Reporter(tmp_path) as reporter:
        good = reporter.log
        reporter.record({"step": 1.0, "loss": 1.0})
        reporter.log = open("/dev/full", "w")  # noqa: SIM115
        with pytest.warns(UserWarning, match="log in /dev/full cannot be written .*No space"):
            reporter.record({"step": 2.0, "loss": 1.0})
        reporter.record({"step": 3.0, "loss": 1.0})
        # What the disk refused is kept for the next attempt: here, the file that has room.
        os.dup2(good.fileno(), reporter.log.fileno())
        good.close()
    rows = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [row[:12] for row in rows] == [f'{{"step": {n}.0' for n in (1, 2, 3)]


@pytest.mark.parametrize("kind", ["train_data", "test_data"])
def test_a_data_file_that_changed_is_refused(tmp_path: Path, kind: str) -> None:
    data = tmp_path / "puzzles.txt"
    data.write_text("".join(f"{puzzle.question}\n" for puzzle in PUZZLES))
    config = CONFIG.changed(**{kind: data})
    first = make(tmp_path / "run", config)
    first.save()
    checkpoint = Checkpoint.load(first.path)
    make(tmp_path / "run", config).restore(checkpoint)
    data.write_text("".join(f"{puzzle.question}\n" for puzzle in reversed(PUZZLES)))
    second = make(tmp_path / "run", config)
    with pytest.raises(ValueError, match=f"`{kind}` = .*puzzles.txt changed since this run began"):
        second.restore(checkpoint)


def test_a_folder_of_texts_that_changed_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "ab":
        (folder / name).write_text(name)
    config = LanguageConfig.of(text=folder)
    before = fingerprints(config)
    refuse_changed(before, config)
    (folder / "a").rename(folder / "c")
    with pytest.raises(ValueError, match=r"`text` = .*texts changed since this run began"):
        refuse_changed(before, config)


def test_resume_goes_round_a_damaged_file(tmp_path: Path) -> None:
    task, trainer = SudokuTask(), make(tmp_path)
    trainer.meta |= {"task": "sudoku", "preset": "tiny", "config": CONFIG.to_json()}
    for trainer.step in (3, 4):
        trainer.save()
    trainer.path.write_bytes(trainer.path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="Refused: .*Going on from .*of step 3"):
        start = Commands(task, serve).start(["--resume", str(trainer.path)])
    assert start.checkpoint is not None
    assert start.checkpoint.meta["step"] == 3
