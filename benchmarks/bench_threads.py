"""A training pass on a CPU: all threads on each operation, or each on samples of its own."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import report
import torch
from timing import interleaved, show

from tasks.lm.config import PRESETS as LANGUAGE
from tasks.sudoku.config import PRESETS as SUDOKU
from tasks.threads import side_by_side
from tasks.training.micro_batches import add_gradients, forward

pytestmark = [pytest.mark.benchmark, pytest.mark.filterwarnings("ignore")]
CASES: dict[str, Any] = {
    "sudoku standard": SUDOKU["standard"],
    "lm shakespeare": LANGUAGE["shakespeare"],
    "lm small": LANGUAGE["small"],
}


@pytest.mark.parametrize("others", [0, 1])
def test_training_pass(benchmark: Any, others: int) -> None:
    """Seconds of a forward and backward pass on every core, beside so many busy processes."""
    before, threads = torch.get_num_threads(), os.cpu_count() or 1
    torch.set_num_threads(threads)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
    try:
        found = {
            name: interleaved(
                {f"{n} parts": passes(config, n) for n in (1, threads)}, report.rounds(31)
            )
            for name, config in CASES.items()
        }
    finally:
        for process in busy:
            process.kill()
            process.wait()
        torch.set_num_threads(before)
    rows = [
        [name, *(f"{1e3 * time:.0f}" for time in times.values()),
         f"{times[f'{threads} parts'] / times['1 parts']:.2f}"]
        for name, times in found.items()
    ]  # fmt: skip
    title = f"a pass on {threads} threads beside {others} busy processes, ms"
    show(title, ["model", "together", "side by side", "ratio"], rows)
    path = report.folder("threads") / "result.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[f"{threads} threads, {others} busy processes"] = found
    path.write_text(json.dumps(kept, indent=1) + "\n")
    benchmark.pedantic(lambda: None, rounds=1)


def passes(config: Any, parts: int) -> Any:
    """A call that goes forward and backward through a batch in so many parts."""
    torch.manual_seed(0)
    model = config.build().train()
    rows, length = config.train.batch_size, config.length
    # Symbols that every task has.
    x, target = torch.randint(0, 2, (2, rows, length))
    pieces = torch.arange(rows).tensor_split(parts)

    def gradients(piece: torch.Tensor) -> Any:
        loss, _, _ = forward(
            model, x[piece], target[piece], config.train,
            max_steps=config.solve.train_steps, parts=parts,
        )  # fmt: skip
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    def call() -> None:
        model.zero_grad()
        add_gradients(model, side_by_side(gradients, pieces, parts))

    return call
