"""The folder of a run is its own: who else wants it is told who has it, and what to do."""

import errno
import fcntl
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tasks import shipped
from tasks.checkpoints.checkpoint import BEST, FOLDER, NAME, PREVIOUS, Checkpoint
from tasks.checkpoints.file import CheckpointError
from tasks.distributed import Group
from tasks.experiments import run as experiment
from tasks.experiments.compare import compare
from tasks.experiments.folder import checkpoint_in, lock_folder, new_folder
from tasks.experiments.jobs import Run, SearchOptions
from tasks.folders import FolderInUse, FolderLock
from tasks.puzzles.commands import Commands
from tasks.runs import RUNS, export, locate
from tasks.serving import serve
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.task import SudokuTask

CONFIG = SudokuConfig.of(side=4, min_clues=6, max_clues=8, steps=12, width=8)
META = {"task": "sudoku", "preset": "tiny", "step": 3, "config": CONFIG.to_json()}


def save(path: Path) -> Path:
    tensors = {"model": {"a": torch.ones(2)}, "average": {"module.a": torch.ones(2)}}
    Checkpoint(tensors, META).save(path)
    return path


def resume(path: Path) -> object:
    return Commands(SudokuTask(), serve).start(["--resume", str(path)])


def test_a_second_new_run_is_refused_or_takes_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = new_folder(None, "sudoku", "tiny")
    with pytest.raises(FolderInUse, match=f"tiny is in use by process {os.getpid()} .*`--out`"):
        new_folder(RUNS / "sudoku/tiny", "sudoku", "tiny")
    second = new_folder(None, "sudoku", "tiny")
    assert (first.folder.name, second.folder.name) == ("tiny", "tiny-2")
    first.release()
    assert new_folder(None, "sudoku", "tiny").folder == first.folder


@pytest.mark.parametrize("name", [NAME, FOLDER, PREVIOUS, f"{PREVIOUS}.safetensors", BEST])
def test_a_folder_with_any_checkpoint_is_no_new_one(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"already holds a run.*--resume {tmp_path / name}`"):
        new_folder(tmp_path, "sudoku", "tiny")
    assert checkpoint_in(tmp_path) == tmp_path / name


@pytest.mark.parametrize("name", [NAME, f"{PREVIOUS}.safetensors", f"{BEST}.safetensors"])
def test_a_run_that_another_process_trains_is_not_resumed(name: str, tmp_path: Path) -> None:
    """Nor touched: to go round damage, a file would be renamed."""
    save(tmp_path / f"{PREVIOUS}.safetensors")
    (tmp_path / name).write_bytes(b"damaged")
    with FolderLock(tmp_path), pytest.raises(FolderInUse, match="Wait until it ends"):
        resume(tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"damaged"


def test_what_is_no_checkpoint_gets_no_lock_beside_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A library of fixed points")
    with pytest.raises(
        CheckpointError, match=r"README\.md is no checkpoint: not a safetensors file"
    ):
        resume(tmp_path / "README.md")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_weights_alone_are_no_run_to_go_on_with(tmp_path: Path) -> None:
    weights = export(save(tmp_path / NAME), tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"averaged weights alone.*`--checkpoint`; `--resume` needs check"
    ):
        resume(weights)
    # Nor under the name of a checkpoint, where there is one to go on from.
    shutil.copy(weights, tmp_path / NAME)
    save(tmp_path / f"{PREVIOUS}.safetensors")
    with pytest.warns(UserWarning, match="averaged weights alone.*Going on from .*-previous"):
        resume(tmp_path / NAME)


def test_a_model_of_the_package_is_no_run_to_go_on_with() -> None:
    path = shipped.path_of("sudoku", "extreme")
    before = sorted(path.parent.iterdir())
    for named in (Path("extreme"), path):
        with pytest.raises(CheckpointError, match=rf"no state of the optimiser.*--weights {named}"):
            resume(named)
    assert sorted(path.parent.iterdir()) == before


def test_what_is_no_checkpoint_is_named_and_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save(tmp_path / "run" / NAME)
    with pytest.raises(ValueError, match=f"the folder of a run. .*--resume .*{NAME}`"):
        resume(tmp_path / "run")
    with pytest.raises(CheckpointError, match="No checkpoint at"):
        resume(tmp_path / "typo.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_a_user_names_instead_of_a_checkpoint_is_answered_with_what_there_is(
    tmp_path: Path,
) -> None:
    (tmp_path / "README.md").write_text("# A file of another kind")
    names = "These come with the package: extreme, sixteen."
    for named, problem in (
        (tmp_path / "README.md", "is no checkpoint: not a safetensors file. Name the folder of a"),
        ("nowhere", "No checkpoint at nowhere. Name the folder of a"),
        ("", "The name of a checkpoint is empty. Name the folder of a"),
    ):
        with pytest.raises(CheckpointError) as caught:
            locate("sudoku", named)
        assert problem in str(caught.value)
        assert str(caught.value).endswith(names)
        assert "train again" not in str(caught.value).lower()
    with pytest.raises(CheckpointError, match="Did you mean 'extreme'"):
        locate("sudoku", Path("extrem"))
    assert locate("sudoku", save(tmp_path / NAME)) == tmp_path / NAME
    assert locate("sudoku", str(tmp_path)) == tmp_path / NAME


def test_a_folder_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / NAME)
    real = os.open

    def read_only(file: object, flags: int, *rest: int, **options: int) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(file, flags, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(ValueError, match=r"cannot be written \(Read-only.*copy of its folder"):
        resume(path)


def test_where_files_cannot_be_locked_a_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", flock)
    living = tmp_path / "checkpoint.tmp"  # of a run that cannot be seen
    living.mkdir()
    for _ in range(2):
        with pytest.warns(UserWarning, match="would go unnoticed: make sure"):
            lock_folder(tmp_path)
    assert living.is_dir()


def test_results_that_cannot_be_written_do_not_hide_that_the_run_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = SimpleNamespace(rows=[])
    trainer = SimpleNamespace(group=Group(), path=tmp_path / NAME, history=history, step=1)
    monkeypatch.setattr(experiment, "train", lambda *_: (trainer, None, {}))

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(experiment, "plot_learning", refuse)
    task: Any = SimpleNamespace(
        model=lambda *_: None, subplots=(), task="sudoku", validated=lambda _: "100 puzzles"
    )
    with pytest.raises(OSError, match=f"Read-only.*trained, and {trainer.path} is complete: eval"):
        experiment.run(task, "tiny", CONFIG, tmp_path)


def test_a_comparison_and_each_of_its_runs_have_their_folders_alone(tmp_path: Path) -> None:
    nothing: Any = SimpleNamespace()
    run = Run(nothing, "tiny", CONFIG, tmp_path, "attractor")
    with FolderLock(tmp_path), pytest.raises(FolderInUse):
        compare("", {}, [run], SearchOptions(rates=(1e-3,)))
    run.place.mkdir()
    with FolderLock(run.place), pytest.raises(FolderInUse, match=run.place.name):
        run.finish()
