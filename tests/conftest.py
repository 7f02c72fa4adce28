"""Fixtures for all tests."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forks import Run, forks
from hypothesis import settings

# A script, with modules of its own.
collect_ignore = ["faults", "support/mutants.py"]

# `make test` tries a few examples of each property, `--hypothesis-profile thorough` many.
settings.register_profile("few", max_examples=6, deadline=None)
settings.register_profile("thorough", max_examples=100, deadline=None)
settings.load_profile("few")

# As in `make test`: sums depend on the number of threads, and so do the parts of a batch.
torch.set_num_threads(1)

# `nohup`, and a shell that starts a job in the background, pass these on as ignored, and what the
# tests start would inherit that.
for name in ("SIGINT", "SIGHUP"):
    if signal.getsignal(number := getattr(signal, name)) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what is loaded by now, all of which stays.

    A whole collection looks at all objects otherwise, and takes 0.4 s for those of the imports.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data files, which are no part of the project."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ATTRACTOR_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent, and ATTRACTOR_SHARED_DATA names no folder")
    return folder


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch on a CPU is computed in two parts side by side, as if torch had two threads.

    It has one all the same: threads that share an operation wait for each other by spinning, for
    minutes where other processes take the cores.
    """
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.fixture(scope="session")
def new_process() -> Iterator[Run]:
    """Runs code in processes of their own, which have loaded torch and nothing else."""
    with forks() as run:
        yield run
