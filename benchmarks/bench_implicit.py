"""Memory and time of a training step, per backward mode."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from timing import interleaved, show
from torch import Tensor, nn

import implicit
from implicit import FixedPointLayer
from solvers import Picard

pytestmark = pytest.mark.benchmark


class Map(nn.Module):
    """A wide tanh layer that contracts, slowly enough to use every step."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(0.97 * torch.linalg.qr(torch.randn(width, width))[0])

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight + x)


def training_step(mode: str, max_steps: int, rows: int, width: int) -> None:
    """One forward and backward pass with exactly `max_steps` updates."""
    torch.manual_seed(0)
    solver = Picard(rtol=0.0, atol=0.0)
    backward = implicit.get_backward(mode)
    layer = FixedPointLayer(Map(width), solver, backward, max_steps=max_steps)
    x = 0.1 * torch.randn(rows, width)
    layer(torch.zeros(rows, width), x).value.square().mean().backward()


def peak_memory(mode: str, max_steps: int) -> int:
    """Peak resident bytes of a fresh process that takes one step, less those before it."""
    code = (
        "import resource, sys, warnings; sys.path[:0] = ['.', 'benchmarks']\n"
        "import torch, bench_implicit as b\n"
        "warnings.simplefilter('ignore'); torch.set_num_threads(1)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"b.training_step({mode!r}, 2, 8, 256)\n"
        "before = peak()\n"
        f"b.training_step({mode!r}, {max_steps}, 16384, 256)\n"
        "print(1024 * (peak() - before))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(run.stdout)


def test_peak_memory_does_not_grow_with_steps(benchmark: Any) -> None:
    rows = []
    for mode in implicit.backward_modes():
        few, many = (min(peak_memory(mode, steps) for _ in range(2)) for steps in (4, 64))
        benchmark.extra_info[mode] = many / few
        rows.append([mode, f"{few / 2**20:.0f}", f"{many / 2**20:.0f}", f"{many / few:.3f}"])
    show("peak memory of a training step", ["mode", "MiB at 4", "MiB at 64", "ratio"], rows)
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.filterwarnings("ignore:The gradient is approximate")
def test_time_of_a_training_step(benchmark: Any) -> None:
    candidates = {
        mode: lambda mode=mode: training_step(mode, 32, 256, 256)
        for mode in implicit.backward_modes()
    }
    seconds = interleaved(candidates, rounds=7)
    rows = [
        [mode, f"{1e3 * t:.1f}", f"{t / seconds['jacobian_free']:.2f}"]
        for mode, t in seconds.items()
    ]
    show("forward + backward, 32 steps", ["mode", "ms", "over jacobian_free"], rows)
    benchmark.extra_info.update(seconds)
    benchmark.pedantic(candidates["exact"], rounds=3)
