"""Prepared tokens under `torchrun`: the run of one process, also when the number changes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from token_folders import run_on_text
from torch import distributed

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.experiments.run import train
from tasks.lm.config import LanguageConfig
from tasks.lm.experiment import TextExperiment
from tasks.lm.prepare import prepare
from tasks.training.task import SourceLost

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (distributed.is_available() and distributed.is_gloo_available()), reason="no gloo"
    ),
]


class Breaking(TextExperiment):
    """The tokens can be read only so often."""

    def load(self, *arguments: Any, **options: Any) -> Any:
        data: Any = super().load(*arguments, **options)
        share, left = data.batches.share, [5]

        def broken(*values: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise SourceLost("The disk is gone.")
            return share(*values)

        data.batches.share = broken
        return data


def on_two(folder: Path, *arguments: str) -> None:
    """Train on two processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tasks.lm", "train", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True, text=True, cwd=folder, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def compare(path: Path, whole: Any) -> None:
    """A checkpoint has the weights and the place in the data that a whole run ended with."""
    found = Checkpoint.load(path)
    assert found.meta["position"] == whole.task.state_dict()
    weights = found.group("model")
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)


def test_two_processes_read_what_one_would(tmp_path: Path) -> None:
    source = run_on_text(tmp_path / "text").changed(optimizer="adamw", learning_rate=1e-3)
    prepare(tmp_path / "tokens", source, shard_tokens=5000)
    config: LanguageConfig = source.changed(shards=tmp_path / "tokens")
    for name in ("one", "parts"):
        (tmp_path / name).mkdir()
    whole, _, _ = train(TextExperiment(), "tiny", config, tmp_path / "one")
    data, model = config.data, config.model
    options = {
        "shards": data.shards, "vocabulary": data.vocabulary, "context": data.context,
        "eval-tokens": data.eval_tokens, "batch-size": 4, "width": model.width, "num-heads": 2,
        "steps": 8, "threads": 1, "warmup": 2, "optimizer": "adamw", "learning-rate": 1e-3,
    }  # fmt: skip
    flags = [f"--{name}={value}" for name, value in options.items()]
    on_two(tmp_path, "--preset", "small", *flags, "--out", str(tmp_path / "two"))
    compare(tmp_path / "two" / "checkpoint.safetensors", whole)
    # One process begins, and two go on.
    with pytest.raises(SourceLost):
        train(Breaking(), "tiny", config, tmp_path / "parts")
    path = tmp_path / "parts" / "checkpoint.safetensors"
    assert Checkpoint.load(path).meta["step"] == 5
    on_two(tmp_path, "--resume", str(path))
    compare(path, whole)
