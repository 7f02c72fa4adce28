"""A training step of small language models: beside nanoGPT's, and by its parts.

All have the shape of nanoGPT's recipe for a CPU: 4 blocks and heads, width 128, 12 sequences of 64
tokens. NANOGPT names a checkout of https://github.com/karpathy/nanoGPT to compare with.
"""

import contextlib
import functools
import importlib.util
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import report
import torch
from timing import interleaved, show
from torch import Tensor, nn

from tasks.lm.config import PRESETS
from tasks.lm.data import Batches, Corpus, load_corpus
from tasks.training.micro_batches import forward
from tasks.training.trainer import Trainer

pytestmark = [pytest.mark.benchmark, pytest.mark.filterwarnings("ignore")]
CONFIG = PRESETS["shakespeare"].changed(text=None, max_bytes=200_000)
ADAMW: dict[str, Any] = {"optimizer": "adamw"}
STEPS: dict[str, dict[str, Any]] = {
    "transformer": {"model": "transformer", **ADAMW},
    "transformer, muon": {"model": "transformer"},
    "attractor, 3 + 1 blocks": ADAMW,
    "transformer, 12 blocks": {"model": "transformer", "backbone_blocks": 11, **ADAMW},
    "attractor, 11 + 1 blocks": {"backbone_blocks": 11, **ADAMW},
}
# The model that a step is compared with; others with the first.
PEERS = {"attractor, 11 + 1 blocks": "transformer, 12 blocks"}
WARM_UP = 5


def test_step(benchmark: Any, tmp_path: Path) -> None:
    """Processor time of whole steps, and over that of a Transformer of as many blocks."""
    steps: dict[str, Callable[[], object]] = {
        name: one_step(trainer_of(tmp_path / str(number), **options))
        for number, (name, options) in enumerate(STEPS.items())
    }
    if (checkout := os.environ.get("NANOGPT")) is not None:
        steps["nanoGPT"] = nanogpt_step(Path(checkout))
    seconds = measured(steps)
    figures = {
        name: {"ms": 1e3 * taken, "ratio": taken / seconds[PEERS.get(name, "transformer")]}
        for name, taken in seconds.items()
    }
    if "nanoGPT" not in figures:
        print("NANOGPT names no checkout of nanoGPT, which is left out.")
    rows = [[name, f"{row['ms']:.1f}", f"{row['ratio']:.2f}"] for name, row in figures.items()]
    show("a training step", ["model", "ms", "over a Transformer's"], rows)
    save("step", figures)
    benchmark.extra_info.update(figures)
    benchmark.pedantic(lambda: None, rounds=1)


def test_parts(benchmark: Any, tmp_path: Path) -> None:
    """Processor time of each part of the Transformer's step, and of Muon's."""
    trainer = trainer_of(tmp_path / "adamw", **STEPS["transformer"])
    muon = trainer_of(tmp_path / "muon", **STEPS["transformer, muon"])
    for each in (trainer, muon):
        one_step(each)()  # so that there are gradients
    model, samples = trainer.model, trainer.samples
    assert samples is not None

    def loss() -> Tensor:
        given = (samples.x, samples.target, trainer.config.train)
        return forward(model, *given, max_steps=0)[0]

    def passes() -> None:
        model.zero_grad()
        loss().backward()

    parts: dict[str, Callable[[], object]] = {
        "forward": loss,
        "forward and backward": passes,
        "clip": lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0),
        "AdamW": trainer.optimizers[0].step,
        "Muon, and AdamW for others": lambda: [each.step() for each in muon.optimizers],
        "average": lambda: trainer.average.update_parameters(model),
    }
    seconds = measured(parts)
    show("parts of a step", ["part", "ms"], [[n, f"{1e3 * t:.2f}"] for n, t in seconds.items()])
    save("parts", {name: 1e3 * taken for name, taken in seconds.items()})
    benchmark.extra_info.update(seconds)
    benchmark.pedantic(lambda: None, rounds=1)


def measured(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Processor seconds of each call on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for call in calls.values():
            for _ in range(WARM_UP):
                call()
        return interleaved(calls, report.rounds(31), time.process_time)
    finally:
        torch.set_num_threads(threads)


@functools.cache
def corpus() -> Corpus:
    """Some of Python's sources, byte by byte."""
    return load_corpus(CONFIG)


def trainer_of(folder: Path, **options: Any) -> Trainer:
    """A run of a model that has not begun."""
    folder.mkdir()
    config = CONFIG.changed(**options)
    torch.manual_seed(0)
    return Trainer(
        Batches(corpus(), config), config.build(), config, folder, config.train_steps, {}
    )


def one_step(trainer: Trainer) -> Callable[[], object]:
    """A call that trains on one batch, without the log."""
    return trainer._train_segment


def nanogpt_step(checkout: Path) -> Callable[[], object]:
    """The same work by nanoGPT's model and optimiser, as its training loop does it."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["nanogpt_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shape = {"block_size": CONFIG.data.context, "vocab_size": CONFIG.data.vocabulary}
    shape |= {"n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.0, "bias": False}
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(module.GPTConfig(**shape))
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    batches, generator = Batches(corpus(), CONFIG), torch.Generator().manual_seed(0)

    def call() -> None:
        x, target = batches.batch(CONFIG.train.batch_size, generator, 0.0)
        _, loss = model(x.contiguous(), target.contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


def save(section: str, figures: dict[str, Any]) -> None:
    path = report.folder("training-step") / "result.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    content[section] = {**figures, **report.setting()}
    path.write_text(json.dumps(content, indent=1) + "\n")
