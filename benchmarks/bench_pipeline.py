"""What the batches of a language model cost a core: prepared tokens, and a stream of text.

A batch is that of the preset 140m, 256 x 2048 tokens. Processor time counts and not time passed,
since it is compared with the cores of a machine; files come from the system's cache.
"""

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report
import torch
from timing import show

from tasks.lm.config import PRESETS, LanguageConfig
from tasks.lm.data import read_texts
from tasks.lm.prepare import prepare
from tasks.lm.shard_batches import ShardedBatches
from tasks.lm.stream import load_batches
from tasks.lm.tokenizer import END, Tokenizer, train_tokenizer
from tasks.planning.cluster import Cluster, duration
from tasks.planning.plan import Plan

pytestmark = pytest.mark.benchmark
PRESET = PRESETS["140m"]
SIZE, CONTEXT = PRESET.train.batch_size, PRESET.data.context
TOKENS = SIZE * CONTEXT
GPUS, STEPS = 8, 8
# Documents of about as many tokens as those of FineWeb-Edu have on average.
NUM_DOCUMENTS, MEAN = 50_000, 1000
# How the columns of the table are printed.
FORMS = {"tokens_per_core_second": ",.0f", "wanted": ",.0f", "times_the_need": ".2f"}


class Words:
    """A tokenizer for which a text is a number, and its tokens are drawn from that seed."""

    size = PRESET.data.vocabulary

    def encode(self, text: str) -> list[int]:
        drawn = np.random.default_rng(int(text))
        count = int(drawn.lognormal(np.log(MEAN) - 0.4, 0.9))
        return (drawn.integers(END + 1, self.size, max(count, 1))).tolist()

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[*self.encode(text), END] for text in texts]


def prepared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ShardedBatches:
    """A folder of 50 million tokens, in documents of uneven length."""
    texts = ((str(i), i % 50 == 0) for i in range(NUM_DOCUMENTS))
    words: Any = Words()
    words.to_json = lambda: ""
    words.decode = lambda tokens: ""
    monkeypatch.setattr("tasks.lm.prepare._open", lambda *_: (words, texts, "numbers"))
    monkeypatch.setattr("tasks.lm.shard_batches.load_tokenizer", lambda *_: words)
    config = PRESET.changed(shards=folder, eval_tokens=CONTEXT)
    prepare(folder, PRESET, shard_tokens=20_000_000)
    batches = load_batches(config)
    assert isinstance(batches, ShardedBatches)
    return batches


def processor_seconds(call: Callable[[], object], rounds: int) -> float:
    """Mean of several calls, after one to warm up; that of all threads."""
    call()
    began = time.process_time()
    for _ in range(rounds):
        call()
    return (time.process_time() - began) / rounds


def wanted_per_second() -> float:
    """Tokens that eight planned GPUs take in a second, with eight solver steps."""
    found = duration(Plan(PRESET), Cluster(gpus=GPUS), STEPS, None, False)
    return found["tokens_per_second"]


def tokenised(tokenizer: Tokenizer, texts: list[str]) -> int:
    """What a stream does with each text, one by one; the number of tokens."""
    row: list[int] = []
    for text in texts:
        row += [*tokenizer.encode(text), END]
    torch.tensor(row)
    return len(row)


def test_reading(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens per second of one core, against what one GPU of eight takes."""
    texts = read_texts(None, 8_000_000)
    stream: LanguageConfig = PRESETS["small"].changed(vocabulary=PRESET.data.vocabulary)
    tokenizer = train_tokenizer(texts, stream.data.vocabulary)
    count = tokenised(tokenizer, texts)
    batches = prepared(tmp_path / "tokens", monkeypatch)
    generator, rows = torch.Generator(), torch.arange(SIZE)
    wanted = wanted_per_second()
    found: list[tuple[str, float, float | None]] = []
    seconds = processor_seconds(lambda: tokenised(tokenizer, texts), report.rounds(3))
    # Every process tokenises the whole batch.
    found.append(("a stream, tokenised by each process", count / seconds, wanted))
    seconds = processor_seconds(lambda: tokenizer.encode_batch(texts), report.rounds(3))
    found.append(("`prepare`, once", count / seconds, None))
    for processes in (1, GPUS):
        share = functools.partial(batches.share, rows[: SIZE // processes], SIZE, generator, 0.0)
        seconds = processor_seconds(share, report.rounds(50))
        name = f"prepared tokens, {processes} process{'es' * (processes > 1)}"
        found.append((name, TOKENS / processes / seconds, wanted / processes))
    figures = [
        {
            "way": way,
            "tokens_per_core_second": round(rate),
            "wanted": None if need is None else round(need),
            "times_the_need": None if need is None else rate / need,
        }
        for way, rate, need in found
    ]
    path = report.folder("pipeline") / "result.json"
    path.write_text(json.dumps({**report.setting(), "rows": figures}, indent=1) + "\n")
    show(
        f"Batches of {SIZE} x {CONTEXT} tokens, one core",
        ["way", "tokens per core second", "wanted", "times the need"],
        [
            [row["way"], *(report.number(key, form)(row) for key, form in FORMS.items())]
            for row in figures
        ],
    )
    assert figures[0]["times_the_need"] < 1
    assert figures[-1]["times_the_need"] > 4
    benchmark.extra_info["rows"] = figures
    benchmark.pedantic(lambda: batches.batch(SIZE, generator, 0.0), rounds=5)
