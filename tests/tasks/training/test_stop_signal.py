"""What asks a run to stop and save, and what does not."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.checkpoints.checkpoint import NAME, Checkpoint
from tasks.training.stop_signal import StopSignal

ROOT = Path(__file__).parents[3]


@contextlib.contextmanager
def handling(number: int, handler: signal.Handlers) -> Iterator[None]:
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_asks_to_stop_once_and_may_come_again(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignal(second_stops=True) as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        for again in (signal.SIGTERM, signal.SIGHUP):  # from the shell, the kernel, `torchrun`
            signal.raise_signal(again)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) is before


def test_under_torchrun_a_second_one_changes_nothing() -> None:
    with StopSignal(second_stops=False) as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_was_ignored_stays_so(number: signal.Signals) -> None:
    """As `nohup` ignores SIGHUP, and a shell SIGINT in a job that it starts with `&`."""
    with handling(number, signal.SIG_IGN):
        with StopSignal(second_stops=True) as stop:
            signal.raise_signal(number)
            assert not stop.requested
        assert signal.getsignal(number) is signal.SIG_IGN


@pytest.mark.slow
@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_is_closed(nohup: bool, tmp_path: Path) -> None:
    """A run on it saves; under `nohup` it goes on to the end, though it can print no more."""
    keyboard, screen = pty.openpty()
    steps = "100" if nohup else "100000"
    command = [
        sys.executable, "-m", "tasks.sudoku", "train", "--preset", "tiny", "--steps", steps,
        "--train-puzzles", "60", "--test-puzzles", "40", "--out", str(tmp_path / "run"),
    ]  # fmt: skip

    def on_the_terminal() -> None:
        os.setsid()
        os.close(os.open(os.ttyname(0), os.O_RDWR))  # it becomes the controlling one
        if nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = subprocess.Popen(
        command, cwd=ROOT, stdin=screen, stdout=screen, stderr=screen,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TERM": "xterm"},
        preexec_fn=on_the_terminal,
    )  # fmt: skip
    os.close(screen)
    seen = b""
    while b"loss" not in seen:
        seen += os.read(keyboard, 4096)
    os.close(keyboard)
    assert process.wait(300) == (0 if nohup else 130)
    assert Checkpoint.load(tmp_path / "run" / NAME).meta["step"] > 0
    assert (tmp_path / "run/result.json").is_file() == nohup
