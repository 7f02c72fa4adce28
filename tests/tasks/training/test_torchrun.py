"""`torchrun` itself: the losses of one process, a signal, and a process that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from parameters import long, slow
from torch import distributed

from tasks.checkpoints.checkpoint import FOLDER, NAME, Checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (distributed.is_available() and distributed.is_gloo_available()), reason="no gloo"
    ),
    pytest.mark.filterwarnings("ignore:Step .. the map does not contract"),
]


def launch(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """What `torchrun` is short for."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "XDG_CACHE_HOME": str(folder)}
    return subprocess.Popen(
        [sys.executable, *torchrun, "-m", "tasks.sudoku", "train", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
        env={**os.environ, **environment},
    )  # fmt: skip


SMALL = ["--preset", "tiny", "--width", "8", "--batch-size", "8", "--train-puzzles", "60",
         "--test-puzzles", "8", "--eval-max-steps", "4"]  # fmt: skip


def losses_of(folder: Path) -> list[float]:
    return [json.loads(row)["loss"] for row in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("kind", "form"),
    [slow("ddp", "file"), long("fsdp", "file"), long("fsdp", "sharded")],
)
def test_torchrun_trains_evaluates_and_resumes(kind: str, form: str, tmp_path: Path) -> None:
    """Fifty steps, in two parts: the first is ended by a signal to `torchrun`."""
    from tasks.sudoku.__main__ import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        one = tmp_path / "one"
        assert main(["train", *SMALL, "--steps", "50", "--out", str(one)]) == 0
    two = tmp_path / "two"
    options = [*SMALL, "--steps", "50", "--out", str(two)]
    options += ["--parallel", kind, "--checkpoints", form]
    newest = two / (NAME if form == "file" else FOLDER)
    process = launch(options, tmp_path)
    wait_for(two / "log.jsonl", process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0
    step = Checkpoint.load(newest).meta["step"]
    assert 0 < step < 50
    process = launch(["--resume", str(newest)], tmp_path)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert out.count("Checkpoint, log and pictures are in") == 1
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-5)


def test_when_a_process_dies_torchrun_ends_and_says_so(tmp_path: Path) -> None:
    options = [*SMALL, "--steps", "100000", "--save-every", "0.5", "--out", str(tmp_path / "run")]
    process = launch(options, tmp_path)
    wait_for(tmp_path / "run" / "checkpoint.safetensors", process)
    child = children_of(process.pid)[-1]
    os.kill(child, signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "lost another one" in out
    assert "SIGKILL" in out or "-9" in out


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not (path.is_file() and path.stat().st_size):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """The processes that one has started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.is_file():
        pytest.skip("the children of a process are read from /proc")
    return [int(child) for child in path.read_text().split()]
