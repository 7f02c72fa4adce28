"""The command `serve` in a process of its own, for a small model with random weights."""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
import torch

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.sudoku.config import PRESETS

ROOT = Path(__file__).parents[3]
CONFIG = PRESETS["tiny"].changed(width=16, eval_max_steps=24)
Start = Callable[..., tuple[subprocess.Popen[str], int]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights as a file."""
    torch.manual_seed(0)
    weights = {f"module.{name}": tensor for name, tensor in CONFIG.build().state_dict().items()}
    meta = {"task": "sudoku", "preset": "tiny", "config": CONFIG.to_json()}
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    Checkpoint({"average": weights}, meta).save(path)
    return path


@pytest.fixture
def start(checkpoint: Path) -> Iterator[Start]:
    """Starts the command with some options; returns its process and its port."""
    processes: list[subprocess.Popen[str]] = []

    def started(
        *options: str, files: int | None = None, log: IO[str] | None = None
    ) -> tuple[subprocess.Popen[str], int]:
        def limit() -> None:
            if files is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

        command = [sys.executable, "-m", "tasks.sudoku", "serve", "--checkpoint", str(checkpoint)]
        process = subprocess.Popen(
            [*command, "--port", "0", *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=log,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, preexec_fn=limit,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout is not None
        match = re.search(r"on http://127\.0\.0\.1:(\d+)$", process.stdout.readline().strip())
        assert match
        return process, int(match[1])

    yield started
    for process in processes:
        process.kill()
        process.communicate()
