"""What torch.compile brings: of `f`, of a layer, and of a training step; and how often it breaks.

The loop of a solver stays in Python, so that a compiled solve is at best as much faster as its
`f` is.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
import report
import torch
from timing import interleaved, show
from torch import Tensor, nn
from torch._dynamo.utils import counters

import solvers
from implicit import FixedPointLayer
from models import Attractor
from tasks.device import compile_blocks
from tasks.sudoku.config import PRESETS

pytestmark = pytest.mark.benchmark


class Residual(nn.Module):
    """An MLP with many small elementwise operations: what a compiler is good at."""

    def __init__(self, width: int, rate: float = 0.5):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm, self.rate = nn.LayerNorm(width), rate

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        h = self.down(nn.functional.gelu(self.up(self.norm(y))))
        return self.rate * torch.tanh(y + h) + x


class Tanh(nn.Module):
    """Problem (a): a tiny map, where the cost of calling it decides."""

    def __init__(self, width: int):
        super().__init__()
        weight = torch.randn(width, width)
        weight *= 0.9 / torch.linalg.eigvals(weight).abs().max()
        self.weight = nn.Parameter(weight)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(torch.addmm(x, y, self.weight))


def training_step(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def step() -> None:
        model.zero_grad()
        model(x).value.square().mean().backward()

    return step


def breaks_of(call: Callable[[], object]) -> dict[str, int]:
    """Graph breaks and graphs of a first call under the compiler."""
    torch._dynamo.reset()
    counters.clear()
    call()
    return {
        "graph_breaks": sum(counters["graph_break"].values()),
        "graphs": counters["stats"]["unique_graphs"],
    }


@pytest.mark.filterwarnings("ignore")
def test_gain_of_compiling(benchmark: Any) -> None:
    torch.manual_seed(0)
    tiny, wide = Tanh(256), Residual(256)
    x = 0.3 * torch.randn(64, 256)
    y0 = torch.zeros_like(x)
    exact = solvers.Anderson(rtol=1e-6)

    def solving(f: Callable[..., Tensor]) -> Callable[[], object]:
        # Without leaving the batch, so that no new shape is compiled in the measurement.
        return lambda: solvers.solve(f, y0, x, solver=exact, throw=False, compact=False)

    def layer(compiled: bool) -> Callable[[], object]:
        made: Any = FixedPointLayer(wide, exact, compact=False)
        made = torch.compile(made) if compiled else made
        return lambda: made(y0, x).value.sum().backward()

    def attractor(compiled: bool) -> Callable[[], object]:
        made: Any = Attractor(nn.Linear(256, 256), wide, solver=exact, backward="phantom")
        made = torch.compile(made) if compiled else made
        return training_step(made, x)

    def grid(compiled: bool) -> Callable[[], object]:
        config = PRESETS["extreme"]
        made = config.build()
        if compiled:
            compile_blocks(made)
        question = torch.randint(0, 10, (config.train.batch_size, 81))

        def step() -> None:
            made.zero_grad()
            made(question, max_steps=config.train_steps).logits.square().mean().backward()

        return step

    kinds = {
        "f of problem (a)": lambda on: solving(torch.compile(tiny) if on else tiny),
        "f, an MLP": lambda on: solving(torch.compile(wide) if on else wide),
        "FixedPointLayer, forward and backward": layer,
        "Attractor, a training step": attractor,
        "Sudoku, a training segment, blocks compiled": grid,
    }
    found: dict[str, dict[str, float]] = {}
    for name, make in kinds.items():
        evidence = breaks_of(make(True))
        pair = {"eager": make(False), "compiled": make(True)}
        seconds = interleaved(pair, rounds=15)
        found[name] = {**evidence, **seconds, "gain": seconds["eager"] / seconds["compiled"]}
    rows = [
        [name, *(f"{row[key]:.0f}" for key in ("graph_breaks", "graphs")),
         *(f"{1e3 * row[key]:.2f}" for key in ("eager", "compiled")), f"{row['gain']:.2f}"]
        for name, row in found.items()
    ]  # fmt: skip
    header = ["what is compiled", "graph breaks", "graphs", "eager ms", "compiled ms", "gain"]
    show("torch.compile", header, rows)
    (report.folder("compile") / "result.json").write_text(json.dumps(found, indent=1) + "\n")
    benchmark.extra_info.update(found)
    benchmark.pedantic(lambda: None, rounds=1)
