"""Independent training runs, several at a time, each in a process of its own.

A finished run is not repeated, and an interrupted one is continued.
"""

import contextlib
import dataclasses
import importlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Self

import tyro

from tasks.checkpoints.manager import load_newest
from tasks.distributed import Group
from tasks.experiments.folder import checkpoint_in, lock_folder
from tasks.experiments.run import Experiment, train
from tasks.folders import draft
from tasks.output import plain_warnings
from tasks.reports.logger import ProgressBar
from tasks.training.options import Config
from tasks.training.stop_signal import Interrupted


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a comparison, and its evaluation.

    Attributes:
        experiment: Of the task.
        preset: Its name.
        config: The options.
        folder: Of the comparison.
        label: The name of this run in the table.
    """

    experiment: Experiment
    preset: str
    config: Config
    folder: Path
    label: str

    @property
    def place(self) -> Path:
        """The folder of the run."""
        rate, seed = self.config.train.learning_rate, self.config.train.seed
        return self.folder / f"{self.label}-{rate:g}-seed{seed}"

    @property
    def done(self) -> Path:
        """The file that holds the result; it exists once the run is finished."""
        return self.place / "compare.json"

    def finish(self, quiet: bool = False) -> None:
        """Train, or go on, and evaluate on each half of the held-out data.

        All processes of `torchrun` call it, and train one model together.

        Args:
            quiet: Do not show how far the evaluation is, as others are under way beside it.
        """
        config, group = self.config.changed(out=self.place), Group.current()
        with lock_folder(self.place) if group.first else contextlib.nullcontext():
            path = group.broadcast(checkpoint_in(self.place) if group.first else None)
            checkpoint = None if path is None else group.in_turn(lambda: load_newest(path))
            trainer, held_out, result = train(
                self.experiment, self.preset, config, self.place, checkpoint, validate=False
            )
            model = self.experiment.model(config, trainer.path)
            with ProgressBar(quiet or not group.first) as bar:
                result |= self.experiment.halves(model, held_out, config, bar)
            result["config"] = config.to_json()
            if not group.first:
                return
            with draft(self.done) as file:  # a part of it would count as done
                file.write_text(json.dumps(result) + "\n")

    def score(self) -> float:
        """How good the learning rate is, on data that the report does not use; higher is better."""
        return self.experiment.sign * self.result()["choosing"][self.experiment.metric]

    def summary(self) -> str:
        """The main result in a few words."""
        metric = self.experiment.metric
        return f"{self.result()['reported'][metric]:.4f} {metric.replace('_', ' ')}"

    def result(self) -> dict[str, Any]:
        """The content of the file `done`."""
        return json.loads(self.done.read_text())

    def repeated(self, rate: float, seed: int) -> Self:
        """The same run with another learning rate and seed."""
        config = self.config.changed(learning_rate=rate, seed=seed)
        return dataclasses.replace(self, config=config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What every comparison lets its user choose.

    Attributes:
        rates: Learning rates to choose from.
        seeds: Runs per model with the chosen rate, the one of the search included.
        minutes: Training time of a run; by default the preset's.
        threads: CPU threads of a run; by default the preset's, or one if there are several jobs.
        jobs: Runs at a time, each in a process of its own; at most as many as there are cores.
        out: Folder of the runs; by default one in `runs/` named by all that makes runs differ.
        modules: Modules of the user, which processes of their own must import as well.
    """

    rates: tuple[float, ...]
    seeds: int = 3
    minutes: float | None = None
    threads: int | None = None
    jobs: int = 1
    out: Path | None = None
    modules: tyro.conf.Suppress[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not self.rates or self.seeds < 1:
            raise ValueError(
                "`rates` must not be empty and `seeds` must be at least 1, got "
                f"{self.rates} and {self.seeds}."
            )
        cores = multiprocessing.cpu_count()
        if not 1 <= self.jobs <= cores:
            raise ValueError(
                f"`jobs` must lie in 1..{cores}, the cores of this machine, got {self.jobs}. Runs "
                "that share a core do not have equal time."
            )

    def applied(self, base: Any, names: Sequence[str]) -> Any:
        """The configuration, changed in the options of these names that were given."""
        changes = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        if self.jobs > 1:
            changes.setdefault("threads", 1)
        return base.changed(**changes)


def search_and_repeat(jobs: Sequence[Run], options: SearchOptions) -> list[float]:
    """Try every rate with one seed, then more seeds with the best one of each job.

    Returns:
        The chosen rates.

    Raises:
        Interrupted: By Ctrl-C, SIGTERM or SIGHUP; every run that was under way left a checkpoint.
    """
    rates, seeds = options.rates, options.seeds
    _finish_all([job.repeated(rate, 0) for job in jobs for rate in rates], options)
    group, best = Group.current(), []
    if group.first:
        best = [max(rates, key=lambda rate, job=job: job.repeated(rate, 0).score()) for job in jobs]
    best = group.broadcast(best)
    chosen = zip(jobs, best, strict=True)
    more = [job.repeated(rate, seed) for job, rate in chosen for seed in range(1, seeds)]
    _finish_all(more, options)
    return best


def _finish_all(jobs: Sequence[Run], options: SearchOptions) -> None:
    """Finish the jobs that are not done: in this process, or several at once in others."""
    group = Group.current()
    done = group.broadcast([job.done.is_file() for job in jobs])
    missing = [job for job, is_done in zip(jobs, done, strict=True) if not is_done]
    if options.jobs == 1:
        for number, job in enumerate(missing, 1):
            print(f"Run {number} of {len(missing)}: {job.place.name}", flush=True)
            job.finish()
            group.broadcast(None)  # the first process has written its result
        return
    if group.size > 1:
        raise ValueError(
            f"`torchrun` trains each run on all its {group.size} processes: drop `--jobs`, got "
            f"{options.jobs}."
        )
    bar = ProgressBar(quiet=not missing, verb="Training")
    with bar, _pool(options.jobs, options.modules) as pool:
        futures = {pool.submit(_finish_quietly, job): job for job in missing}
        bar.begin(f"{len(missing)} runs, {options.jobs} at a time", len(missing))
        for number, future in enumerate(as_completed(futures), 1):
            future.result()
            job = futures[future]
            print(f"{number} of {len(missing)}: {job.place.name} {job.summary()}", flush=True)
            bar.advance()


@contextlib.contextmanager
def _pool(count: int, modules: Sequence[str]) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes. On exit it waits for them, also after Ctrl-C, which reaches them too."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        count, mp_context=context, initializer=_begin, initargs=(tuple(modules),)
    )
    try:
        yield pool
    except KeyboardInterrupt:
        raise Interrupted(Path()) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(modules: Sequence[str]) -> None:
    """Prepare a process: import modules, and stop with the command that started it.

    A process whose command is killed saves its run, as after any SIGTERM.
    """
    for module in modules:
        importlib.import_module(module)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _finish_quietly(job: Run) -> None:
    """Finish a job, and write what it prints to a file in its folder."""
    job.place.mkdir(parents=True, exist_ok=True)
    output = (job.place / "output.txt").open("a")
    with output as file, contextlib.redirect_stdout(file), plain_warnings():
        try:
            job.finish(quiet=True)
        except Interrupted:
            parent = multiprocessing.parent_process()
            if parent is not None and not parent.is_alive():
                os._exit(1)  # there is nobody to report to, and no more work
            raise
