"""What solving many puzzles costs when those that have converged leave the batch, and when not.

Ten thousand puzzles of uneven difficulty (BENCH_PUZZLES sets another number), in the batches of
`eval`, with the trained model that comes with the package.
"""

import json
import math
import time
from typing import Any

import pytest
import report
import torch
from timing import show
from torch import Tensor

from tasks import shipped
from tasks.puzzles.evaluate import predict
from tasks.runs import load_model
from tasks.sudoku.augment import augment
from tasks.sudoku.task import SudokuTask

pytestmark = pytest.mark.benchmark
CHECKPOINT = shipped.path_of("sudoku", "extreme")
PUZZLES = report.setting_or("BENCH_PUZZLES", 10_000)
MADE, MAX_STEPS = 500, 256


def _limit(num_steps: Tensor, batch: int) -> float:
    """Updates if batches stay whole until their slowest puzzle is done, over those needed."""
    made = sum(len(part) * int(part.max()) for part in num_steps.split(batch))
    return made / int(num_steps.sum())


def test_inference_with_and_without_compaction(benchmark: Any) -> None:
    task = SudokuTask()
    model, config = load_model(task, CHECKPOINT, device="cpu")
    config = config.changed(
        train_data=None, test_data=None, train_puzzles=config.train.batch_size,
        test_puzzles=MADE, min_clues=22, max_clues=30, minimal=False,
    )  # fmt: skip
    made, _ = task.encode(task.load(config)[1], config)
    repeated = made.repeat(math.ceil(PUZZLES / MADE), 1)[:PUZZLES]
    generator = torch.Generator().manual_seed(0)
    x, _ = augment(repeated, repeated, config.data.board, generator)
    seconds, found = {}, {}
    for compact in (True, False):
        model.solving.compact = compact  # type: ignore[union-attr]
        predict(model, x[:32], max_steps=4)
        began = time.perf_counter()
        found[compact] = predict(model, x, max_steps=MAX_STEPS)
        seconds[compact] = time.perf_counter() - began
    same = (found[True].classes == found[False].classes).all(1).float().mean().item()
    figures = {
        "puzzles": PUZZLES,
        "max_steps": MAX_STEPS,
        "mean_steps": found[True].num_steps.float().mean().item(),
        "converged": found[True].converged.float().mean().item(),
        "seconds": seconds[True],
        "seconds_without_compaction": seconds[False],
        "gain": seconds[False] / seconds[True],
        "same_answers": same,
        # Without compaction a narrow batch waits for fewer others: updates over those needed.
        "limit_by_batch": {size: _limit(found[True].num_steps, size) for size in (11, 64, 256)},
    }
    header = ["puzzles", "mean steps", "s with", "s without", "gain", "same answers"]
    row = [PUZZLES, figures["mean_steps"], seconds[True], seconds[False], figures["gain"], same]
    show("compaction in inference", header, [[f"{value:.4g}" for value in row]])
    (report.folder("inference") / "result.json").write_text(json.dumps(figures, indent=1) + "\n")
    benchmark.extra_info.update(figures)
    benchmark.pedantic(lambda: None, rounds=1)
    assert same > 0.999
