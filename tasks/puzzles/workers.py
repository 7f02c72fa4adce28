"""Share the making of puzzles among processes.

Not `multiprocessing`: forking a process in which torch runs threads is unsafe, and spawning
imports the caller's main module, hence torch, in each worker, which takes longer than the work
itself, and fails for a script without a main guard. A worker here is a fresh interpreter that
runs a module which imports no torch: it reads a job as JSON and writes puzzles as JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any

Job = dict[str, Any]
"""JSON values."""

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chunks(indices: range, workers: int) -> list[range]:
    """Split the indices into several parts per worker, since some puzzles take longer."""
    size = max(1, -(-len(indices) // (4 * workers)))
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def in_processes(module: str, jobs: Sequence[Job], workers: int) -> list[list[Any]]:
    """Do jobs in worker processes; the puzzles of all jobs in order, as lists of their fields.

    Args:
        module: Calls `answer` when it is run.
        jobs: What to do.
        workers: Processes at a time.

    Raises:
        ValueError: A job raised one.
        RuntimeError: A worker died.
    """
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(lambda job: _in_process(module, job), jobs)
        return list(itertools.chain.from_iterable(parts))


def _in_process(module: str, job: Job) -> list[list[Any]]:
    path = os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
    finished = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        cwd=_PACKAGE_ROOT,
        env={**os.environ, "PYTHONPATH": path},
    )
    if finished.returncode:
        raise RuntimeError(
            f"A worker that makes puzzles ended with exit status {finished.returncode}. Use "
            f"`workers=1` to make them in this process. Its last words:\n{finished.stderr}"
        )
    reply = json.loads(finished.stdout)
    if reply["error"] is not None:
        raise ValueError(reply["error"])
    return reply["puzzles"]


def answer(work: Callable[[Job], Iterable[Any]]) -> None:
    """Do the job on standard input, and write its puzzles; the other side of `in_processes`.

    Args:
        work: Makes the puzzles of a job, as dataclasses.
    """
    job = json.load(sys.stdin)
    reply: dict[str, Any] = {"puzzles": [], "error": None}
    try:
        reply["puzzles"] = [astuple(puzzle) for puzzle in work(job)]
    except ValueError as error:
        reply["error"] = str(error)
    json.dump(reply, sys.stdout)
