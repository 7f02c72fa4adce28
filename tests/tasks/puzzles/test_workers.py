"""Processes that make puzzles."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LONG = """
from tasks.sudoku.board import Board
from tasks.sudoku.generate import generate
generate(1_000_000, Board.of(9), workers=2)
"""


def children(of: int) -> list[int]:
    """Numbers of the processes that a process has started."""
    threads = Path(f"/proc/{of}/task").iterdir()
    return [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc to look for them in")
def test_they_end_with_the_process_that_started_them() -> None:
    command = [sys.executable, "-c", LONG]
    with subprocess.Popen(command, cwd=ROOT) as process:
        started: list[int] = []
        while len(started) < 2:
            assert process.poll() is None
            time.sleep(0.05)
            started = children(process.pid)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs: it is there, and no zombie that nobody has waited for."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False
