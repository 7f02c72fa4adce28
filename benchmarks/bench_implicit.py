"""Memory and time of a training step, per backward mode."""

from typing import Any

import pytest
import torch
from memory import peak_of
from timing import interleaved, show
from torch import Tensor, nn

import implicit
from implicit import FixedPointLayer
from implicit.testing import pairs

pytestmark = pytest.mark.benchmark


class Map(nn.Module):
    """A wide tanh layer; `rate` sets how fast each sample converges."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(width, width))[0])

    def forward(self, y: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        return torch.tanh(rate * (y @ self.weight) + x)


def training_step(mode: str, max_steps: int, solver: str) -> None:
    """One forward and backward pass over samples that stop at different times, or never."""
    torch.manual_seed(0)
    layer = FixedPointLayer(Map(256), solver, mode, max_steps=max_steps)
    x, rate = 0.1 * torch.randn(1024, 256), torch.linspace(0.1, 0.97, 1024)[:, None]
    layer(torch.zeros_like(x), x, rate).value.square().mean().backward()


@pytest.mark.filterwarnings("ignore:The gradient is approximate")
def test_peak_memory_does_not_grow_with_steps(benchmark: Any) -> None:
    rows = []
    for solver, mode in pairs():
        if solver not in ("picard", "anderson"):
            continue
        few, many = (peak_of(lambda n=n, s=solver, m=mode: training_step(m, n, s)) for n in (4, 64))
        benchmark.extra_info[f"{solver} {mode}"] = many / few
        megabytes = [f"{few / 2**20:.1f}", f"{many / 2**20:.1f}"]
        rows.append([solver, mode, *megabytes, f"{many / few:.4f}"])
    show(
        "peak memory of a training step, live tensors",
        ["solver", "mode", "MiB at 4", "MiB at 64", "ratio"], rows,
    )  # fmt: skip
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.filterwarnings("ignore:The gradient is approximate")
def test_time_of_a_training_step(benchmark: Any) -> None:
    candidates = {
        mode: lambda mode=mode: training_step(mode, 32, "anderson")
        for mode in implicit.backward_modes()
    }
    seconds = interleaved(candidates, rounds=7)
    rows = [
        [mode, f"{1e3 * t:.1f}", f"{t / seconds['jacobian_free']:.2f}"]
        for mode, t in seconds.items()
    ]
    show("forward + backward, 32 steps of anderson", ["mode", "ms", "over jacobian_free"], rows)
    benchmark.extra_info.update(seconds)
    benchmark.pedantic(candidates["exact"], rounds=3)
