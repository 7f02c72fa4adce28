"""The loop of a graph beside the eager loop and as many bare calls of `f`."""

import copy
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import report
import torch
from shared_problems import PROBLEMS
from timing import interleaved, show
from torch import Tensor, nn

import solvers
from implicit import FixedPointLayer
from tasks.device import compile_blocks
from tasks.lm.config import PRESETS as LANGUAGE
from tasks.sudoku.config import PRESETS as SUDOKU

pytestmark = [pytest.mark.benchmark, pytest.mark.filterwarnings("ignore")]
SOLVERS = ("picard", "anderson", "broyden")


class Tanh(nn.Module):
    """tanh(W y + x), with |W| = 0.9."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Linear(width, width)
        with torch.no_grad():
            self.inner.weight.mul_(0.9 / torch.linalg.matrix_norm(self.inner.weight, 2))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(y) + x)


@torch.no_grad()
@pytest.mark.parametrize("problem", ["a", "one sample of 64 numbers"])
def test_solve(benchmark: Any, problem: str) -> None:
    """Seconds of a solve to 1e-6, and of the first call, which compiles."""
    if problem == "a":
        posed = PROBLEMS["a"]().to(torch.float32)
        f, y0, args = posed.f, posed.y0, posed.args
    else:
        torch.manual_seed(0)
        f, y0, args = Tanh(64), torch.zeros(1, 64), (torch.randn(1, 64),)
    found: dict[str, dict[str, float]] = {}
    for name in SOLVERS:
        solver = solvers.get_solver(name, rtol=1e-6)

        def solve(loop: Any, solver: Any = solver) -> solvers.Solution:
            return solvers.solve(f, y0, *args, solver=solver, max_steps=100, loop=loop)

        began = time.perf_counter()
        evals = solve("graph").num_evals
        first = time.perf_counter() - began

        def bare(count: int = evals) -> None:
            y = y0
            for _ in range(count):
                y = f(y, *args)

        calls: dict[str, Callable[[], object]] = {
            "eager": lambda solve=solve: solve("eager"),
            "graph": lambda solve=solve: solve("graph"),
            "bare": bare,
        }
        seconds = interleaved(calls, rounds=31)
        found[name] = {"evals": evals, "first": first, **seconds}
    rows = [
        [name, f"{row['evals']:.0f}", *(f"{1e3 * row[key]:.2f}" for key in calls),
         f"{row['graph'] / row['bare']:.2f}", f"{row['eager'] / row['graph']:.1f}",
         f"{row['first']:.0f}"]
        for name, row in found.items()
    ]  # fmt: skip
    header = ["solver", "evaluations", "eager ms", "graph ms", "bare ms", "graph / bare"]
    show(f"a solve: {problem}", [*header, "eager / graph", "first call s"], rows)
    _keep({f"solve, {problem}": found})
    benchmark.extra_info.update(found)
    benchmark.pedantic(lambda: None, rounds=1)


def test_training_step(benchmark: Any) -> None:
    """Forward and backward of one layer: 64 samples of 256 numbers."""
    torch.manual_seed(0)
    x, exact = torch.randn(64, 256), solvers.Anderson(rtol=1e-6)
    found: dict[str, dict[str, float]] = {}
    for mode in ("exact", "phantom", "neumann", "jacobian_free"):

        def made(fullgraph: bool, mode: str = mode) -> Callable[[], object]:
            layer: Any = FixedPointLayer(Tanh(256), exact, mode)
            called = torch.compile(layer, fullgraph=True) if fullgraph else layer

            def step() -> None:
                layer.zero_grad()
                called(torch.zeros_like(x), x).value.square().sum().backward()

            return step

        seconds = interleaved({"eager": made(False), "graph": made(True)}, rounds=31)
        found[mode] = {**seconds, "gain": seconds["eager"] / seconds["graph"]}
    rows = [
        [mode, *(f"{1e3 * row[key]:.2f}" for key in ("eager", "graph")), f"{row['gain']:.2f}"]
        for mode, row in found.items()
    ]
    show("forward and backward", ["mode", "eager ms", "graph ms", "gain"], rows)
    _keep({"training step": found})
    benchmark.extra_info.update(found)
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.parametrize("task", ["sudoku", "lm"])
def test_a_model_as_one_graph(benchmark: Any, task: str) -> None:
    """Forward and backward of a whole model: eager, with compiled blocks, and as one graph."""
    torch.manual_seed(0)
    config: Any = SUDOKU["standard"] if task == "sudoku" else LANGUAGE["small"]
    model = config.build()
    x = torch.randint(0, 10, (16, 81)) if task == "sudoku" else torch.randint(0, 200, (2, 128))
    blocks: Any = copy.deepcopy(model)
    compile_blocks(blocks)

    def step(called: Any) -> Callable[[], object]:
        def go() -> None:
            called.zero_grad()
            called(x, max_steps=4).logits.square().mean().backward()

        return go

    whole = torch.compile(copy.deepcopy(model), fullgraph=True)
    calls = {"eager": step(model), "blocks": step(blocks), "one graph": step(whole)}
    seconds = interleaved(calls, rounds=9)
    rows = [[task, *(f"{1e3 * seconds[name]:.1f}" for name in calls)]]
    show("a training step, ms", ["model", *calls], rows)
    _keep({f"model, {task}": seconds})
    benchmark.extra_info.update(seconds)
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_launches(benchmark: Any) -> None:
    """Kernels and graphs that a step launches on a CUDA device, and its time."""
    torch.manual_seed(0)
    f, y0, args = Tanh(256).cuda(), torch.zeros(64, 256).cuda(), (torch.randn(64, 256).cuda(),)
    found: dict[str, dict[str, float]] = {}
    for name in SOLVERS:
        solver = solvers.get_solver(name, rtol=1e-6)

        def solve(y0: Tensor, *args: Tensor, solver: Any = solver) -> solvers.Solution:
            return solvers.solve(f, y0, *args, solver=solver, max_steps=100)

        ways: dict[str, Any] = {"eager": solve}
        for mode in ("default", "reduce-overhead"):
            ways[mode] = torch.compile(solve, fullgraph=True, mode=mode)
        for way, called in ways.items():
            for _ in range(3):
                evals = int(called(y0, *args).num_evals)
            with torch.profiler.profile() as profile:
                called(y0, *args)
                torch.cuda.synchronize()
            launches = sum(event.count for event in profile.key_averages() if "Launch" in event.key)
            began = time.perf_counter()
            called(y0, *args)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - began
            found[f"{name}, {way}"] = {"launches": launches / evals, "seconds": seconds / evals}
    rows = [
        [name, f"{row['launches']:.1f}", f"{1e6 * row['seconds']:.0f}"]
        for name, row in found.items()
    ]
    show("a step on a CUDA device", ["solver and loop", "launches", "us"], rows)
    _keep({"launches": found})
    benchmark.extra_info.update(found)
    benchmark.pedantic(lambda: None, rounds=1)


def _keep(found: dict[str, Any]) -> None:
    path = report.folder("graph") / "result.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(kept | found, indent=1) + "\n")
