"""Killed without warning at any moment, a run goes on from what it saved, to the same numbers."""

import signal
import time
from pathlib import Path
from random import Random

import pytest
import tiny_runs
from tiny_runs import Disturbance, new, resumed

from tasks.checkpoints.checkpoint import NAME, Checkpoint

# Of a run that is killed at its third save, of which there is one after each step.
STEPS = 6


def arguments(folder: Path, steps: int) -> tuple[str, ...]:
    """Those of a run that begins, or goes on from its checkpoint."""
    return resumed(folder) if newest(folder).is_file() else new(folder, steps, "--refill")


def run(folder: Path, steps: int, disturbance: Disturbance | None = None) -> int:
    folder.mkdir(exist_ok=True)
    return tiny_runs.run(folder, arguments(folder, steps), disturbance)[0]


def newest(folder: Path) -> Path:
    return folder / "run" / NAME


def names(folder: Path) -> set[str]:
    """All that lies in the folder of the run, hidden files included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("run/**/*") if path.is_file()}


def assert_same_end(folder: Path, whole: Path) -> None:
    kept, expected = (
        {name for name in names(each) if "tensorboard" not in name} for each in (folder, whole)
    )
    assert kept == expected
    tiny_runs.assert_same_end(folder / "run", whole / "run")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, STEPS) == 0
    return folder


@pytest.mark.parametrize(
    "death",
    [
        "safetensors is writing",
        *(
            pytest.param(death, marks=pytest.mark.slow)
            for death in ("half of the file is written", "the old file is not kept yet")
        ),
        "the new file has no name yet",
    ],
)
def test_killed_while_it_saves(death: str, tmp_path: Path, uninterrupted: Path) -> None:
    writing = death == "safetensors is writing"
    assert run(tmp_path, STEPS, ("death", death)) == -(
        signal.SIGXFSZ if writing else signal.SIGKILL
    )
    assert Checkpoint.load(newest(tmp_path)).meta["step"] == 2
    # It has a name of its own for what it writes, which is left.
    assert any("/.tmp" in name for name in names(tmp_path)) == writing
    assert run(tmp_path, STEPS) == 0
    assert_same_end(tmp_path, uninterrupted)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    assert run(tmp_path / "whole", 18) == 0
    kill_at_random(tmp_path / "parts", kills=3, steps=18)
    assert_same_end(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.long  # fifty processes, each of which loads torch
def test_killed_fifty_times(tmp_path: Path) -> None:
    assert run(tmp_path / "whole", 300) == 0
    kill_at_random(tmp_path / "parts", kills=50, steps=300)
    assert_same_end(tmp_path / "parts", tmp_path / "whole")


def kill_at_random(folder: Path, kills: int, steps: int) -> None:
    """Each time some saves after the process began, and a moment more."""
    random, path = Random(0), newest(folder)
    folder.mkdir(exist_ok=True)
    for _ in range(kills):
        process = tiny_runs.start(folder, arguments(folder, steps))
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
