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
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any, ClassVar

from tasks.puzzles.puzzle import Puzzle

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


class Recipe(ABC):
    """What determines puzzle number i: a dataclass of JSON values, which travel to the workers.

    Its module calls `answer_draws` when it is run.

    Attributes:
        fewest_per_worker: For fewer puzzles a process of its own does not pay.
    """

    fewest_per_worker: ClassVar[int] = 250

    @abstractmethod
    def draw(self, index: int) -> Puzzle:
        """Make puzzle number `index`, always the same.

        Raises:
            ValueError: There are no such puzzles, or too few to be found.
        """


def draw_all(recipe: Recipe, indices: range, workers: int | None) -> list[Puzzle]:
    """Make the puzzles of these numbers, by default in a process for each CPU core.

    The number of processes changes no puzzle.
    """
    workers = min(workers or num_cores(), len(indices) // recipe.fewest_per_worker)
    if workers <= 1:
        return [recipe.draw(index) for index in indices]
    jobs = [
        {"recipe": vars(recipe), "start": part.start, "stop": part.stop}
        for part in chunks(indices, workers)
    ]
    return in_processes(type(recipe).__module__, jobs, workers)


def answer_draws(recipe: Callable[..., Recipe]) -> None:
    """Make the puzzles of the job on standard input; the other side of `draw_all`."""

    def work(job: Job) -> list[Puzzle]:
        made = recipe(**job["recipe"])
        return [made.draw(index) for index in range(job["start"], job["stop"])]

    answer(work)


def different(
    count: int,
    recipe: Recipe,
    workers: int | None,
    taken: Callable[[Puzzle], bool] = lambda puzzle: False,
) -> list[Puzzle]:
    """The first puzzles of a recipe with different questions, without those that are taken.

    Raises:
        ValueError: There are fewer, or nearly so.
    """
    found: dict[str, Puzzle] = {}
    next_index, most_draws = 0, 20 * count + 1000
    while len(found) < count:
        if next_index > most_draws:
            raise ValueError(
                f"Found only {len(found)} of {count} different puzzles in {next_index} draws: "
                "there are too few of this kind. Ask for fewer, or for a wider range of them."
            )
        indices = range(next_index, next_index + count - len(found))
        next_index = indices.stop
        for puzzle in draw_all(recipe, indices, workers):
            if not taken(puzzle):
                found.setdefault(puzzle.question, puzzle)
    return list(found.values())


def train_and_test(
    counts: tuple[int, int],
    recipes: tuple[Recipe, Recipe],
    identity: Callable[[Puzzle], Any],
    workers: int | None = None,
) -> tuple[list[Puzzle], list[Puzzle]]:
    """Make a training and a test set that share no puzzle: no value of `identity` is in both.

    Raises:
        ValueError: There are too few puzzles.
    """
    train = different(counts[0], recipes[0], workers)
    known = {identity(puzzle) for puzzle in train}
    test = different(counts[1], recipes[1], workers, lambda puzzle: identity(puzzle) in known)
    return train, test


def in_processes(module: str, jobs: Sequence[Job], workers: int) -> list[Puzzle]:
    """Do jobs in worker processes, each of which runs a module that calls `answer`.

    Returns:
        The puzzles of all jobs in order.

    Raises:
        ValueError: A job raised one.
        RuntimeError: A worker died.
    """
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(lambda job: _in_process(module, job), jobs)
        return [Puzzle(*row) for row in itertools.chain.from_iterable(parts)]


def _in_process(module: str, job: Job) -> list[list[Any]]:
    # A worker finds the modules that this process finds, also in its working directory.
    path = os.pathsep.join([str(_PACKAGE_ROOT), *map(os.path.abspath, sys.path)])
    finished = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps({"parent": os.getpid(), "job": job}),
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


def answer(work: Callable[[Job], Iterable[Puzzle]]) -> None:
    """Do the job on standard input, and write its puzzles; the other side of `in_processes`."""
    given = json.load(sys.stdin)
    if os.name == "posix":
        threading.Thread(target=_end_with, args=(given["parent"],), daemon=True).start()
    reply: dict[str, Any] = {"puzzles": [], "error": None}
    try:
        reply["puzzles"] = [astuple(puzzle) for puzzle in work(given["job"])]
    except ValueError as error:
        reply["error"] = str(error)
    json.dump(reply, sys.stdout)


def _end_with(parent: int) -> None:
    """End this process soon after the one that started it, which may have been killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
