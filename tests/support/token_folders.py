"""A small text as files, a run on it, and the batches of its prepared tokens."""

from pathlib import Path

import numpy as np
import torch

from tasks.lm.config import LanguageConfig
from tasks.lm.shard_batches import ShardedBatches
from tasks.lm.stream import load_batches

GENERATOR = torch.Generator()
TEXTS = [f"document {i}: " + " ".join(str(i * j) for j in range(40 + i % 19)) for i in range(120)]


def run_on_text(folder: Path) -> LanguageConfig:
    """Write files to a folder, and a run that reads them."""
    folder.mkdir()
    for number, content in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(content)
    return LanguageConfig.of(
        text=folder, vocabulary=257, context=16, eval_tokens=40, batch_size=4, width=16,
        num_heads=2, steps=8, threads=1, warmup=2,
    )  # fmt: skip


def load(config: LanguageConfig) -> ShardedBatches:
    """The batches of a run on a folder of tokens."""
    batches = load_batches(config)
    assert isinstance(batches, ShardedBatches)
    return batches


def whole_row(batches: ShardedBatches) -> list[int]:
    """All tokens to train on, in the order in which they are stored."""
    documents = np.arange(batches.store.num_documents)
    return batches.store.read(documents, 0, batches.store.num_tokens).tolist()
