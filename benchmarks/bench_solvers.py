"""What the solvers cost beyond `f` itself, and what compaction saves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timing import interleaved, show
from torch import Tensor
from torch.nn import functional as F

import solvers

pytestmark = pytest.mark.benchmark
# Adapters to other libraries are compared in bench_peers.
NATIVE = [name for name in solvers.names() if "." not in name]


def transformer_like(batch: int = 16, tokens: int = 64, width: int = 128) -> tuple[Any, Tensor]:
    """A two-block map that takes several milliseconds, and its injected input."""
    g = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=g) / columns**0.5

    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    blocks = [tuple(matrix(*shape) for shape in shapes) for _ in range(2)]

    def f(y: Tensor, x: Tensor) -> Tensor:
        h = x + 0.45 * y
        for qkv, out, up, down in blocks:
            normed = F.layer_norm(h, (width,))
            q, k, v = F.linear(normed, qkv).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            h = h + 0.45 * F.linear(mixed, out)
            h = h + 0.45 * F.linear(F.gelu(F.linear(F.layer_norm(h, (width,)), up)), down)
        return F.layer_norm(h, (width,))

    return f, torch.randn(batch, tokens, width, generator=g)


@torch.no_grad()
@pytest.mark.parametrize("batch", [4, 16])
def test_overhead_beyond_f(benchmark: Any, batch: int) -> None:
    """Wall time over evaluations x time of f, for an f of at least 2 ms."""
    f, x = transformer_like(batch)
    y0 = torch.zeros_like(x)
    exact = {name: solvers.get_solver(name, rtol=1e-6) for name in NATIVE}

    def solve(name: str) -> solvers.Solution:
        return solvers.solve(f, y0, x, solver=exact[name], max_steps=60, compact=False)

    evals = {name: solve(name).num_evals for name in exact}
    candidates: dict[str, Callable[[], object]] = {"f": lambda: f(y0, x)}
    # As many bare calls as the solve makes, interleaved with it, are the fair yardstick.
    for name, count in evals.items():
        candidates[name] = lambda name=name: solve(name)
        candidates[f"{name} bare"] = lambda count=count: [f(y0, x) for _ in range(count)]
    seconds = interleaved(candidates)
    ratios = {name: seconds[name] / seconds[f"{name} bare"] for name in exact}
    rows = [
        [name, str(evals[name]), f"{1e3 * seconds[name]:.1f}", f"{ratios[name]:.3f}"]
        for name in exact
    ]
    show(
        f"overhead at batch {batch}; one f takes {1e3 * seconds['f']:.2f} ms",
        ["solver", "evaluations", "ms", "wall / bare"], rows,
    )  # fmt: skip
    benchmark.extra_info.update(ratios)
    benchmark.pedantic(lambda: solve("anderson"), rounds=3)


@torch.no_grad()
def test_compaction(benchmark: Any) -> None:
    """256 samples, of which 90 % need 8 Picard steps and 10 % need 100."""
    g = torch.Generator().manual_seed(0)
    tolerance = 1e-4
    rate = torch.full((256, 1, 1), tolerance ** (1 / 8))
    rate[::10] = tolerance ** (1 / 100)
    weight, _ = torch.linalg.qr(torch.randn(128, 128, generator=g))
    x = torch.randn(256, 16, 128, generator=g)

    def f(y: Tensor, rate: Tensor, x: Tensor) -> Tensor:
        return rate * (y @ weight) + (1 - rate) * x

    candidates: dict[str, Callable[[], object]] = {}
    steps = {}
    for name in NATIVE:
        solver = solvers.get_solver(name, rtol=tolerance, atol=0.0)
        for compact in (True, False):

            def solve(solver: Any = solver, compact: bool = compact) -> solvers.Solution:
                return solvers.solve(
                    f, torch.zeros_like(x), rate, x, solver=solver, max_steps=400, throw=False,
                    compact=compact,
                )  # fmt: skip

            candidates[f"{name} {compact}"] = solve
        steps[name] = solve().num_steps.float().quantile(torch.tensor([0.5, 1.0])).tolist()
    seconds = interleaved(candidates, rounds=5)
    rows, gains = [], {}
    for name, (median, most) in steps.items():
        gains[name] = seconds[f"{name} False"] / seconds[f"{name} True"]
        rows.append(
            [name, f"{median:.0f}", f"{most:.0f}", f"{1e3 * seconds[f'{name} True']:.0f}",
             f"{1e3 * seconds[f'{name} False']:.0f}", f"{gains[name]:.1f}"]
        )  # fmt: skip
    show(
        "compaction",
        ["solver", "median steps", "most steps", "ms with", "ms without", "gain"], rows,
    )  # fmt: skip
    benchmark.extra_info.update(gains)
    benchmark.pedantic(candidates["picard True"], rounds=3)


# What keeps a window of past steps, or nothing.
WINDOWS = ("picard", "anderson", "broyden")


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2])
def test_overhead_on_large_states(benchmark: Any, threads: int) -> None:
    """Wall time over evaluations x time of f on 512 x 1024, where a window has 16 MB."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(512, 1024, generator=g)
    weight = 0.9 * torch.randn(1024, 1024, generator=g) / 1024**0.5

    def f(y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(torch.addmm(x, y, weight))

    y0, before = torch.zeros_like(x), torch.get_num_threads()
    torch.set_num_threads(threads)
    candidates: dict[str, Callable[[], object]] = {"copy": lambda: y0.clone()}
    evals = {}
    for name in WINDOWS:
        solver = solvers.get_solver(name, rtol=1e-6)

        def solve(solver: Any = solver) -> solvers.Solution:
            return solvers.solve(f, y0, x, solver=solver, max_steps=60, compact=False)

        evals[name], candidates[name] = solve().num_evals, solve
        bare = lambda count=evals[name]: [f(y0, x) for _ in range(count)]  # noqa: E731
        candidates[f"{name} bare"] = bare
    seconds = interleaved(candidates)
    torch.set_num_threads(before)
    ratios = {name: seconds[name] / seconds[f"{name} bare"] for name in WINDOWS}
    beyond = {name: (seconds[name] - seconds[f"{name} bare"]) / evals[name] for name in WINDOWS}
    rows = [
        [name, str(evals[name]), f"{1e3 * seconds[f'{name} bare'] / evals[name]:.2f}",
         f"{1e3 * beyond[name]:.2f}", f"{ratios[name]:.2f}"]
        for name in WINDOWS
    ]  # fmt: skip
    show(
        f"512 x 1024, {threads} threads; a copy of the state takes {1e3 * seconds['copy']:.2f} ms",
        ["solver", "evaluations", "ms of f", "ms beyond, per step", "wall / bare"], rows,
    )  # fmt: skip
    benchmark.extra_info.update(ratios)
    benchmark.pedantic(candidates["anderson"], rounds=3)


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2])
def test_time_follows_the_rows_evaluated(benchmark: Any, threads: int) -> None:
    """256 x 512, 90 % easy samples: time and rows of `f`, against the same solve without dropping.

    Once with an `f` that costs less than a step, and once with a matrix product in it.
    """
    g = torch.Generator().manual_seed(0)
    x, spectrum = torch.randn(256, 512, generator=g), torch.linspace(-1, 1, 512)
    rate = torch.full((256, 1), 0.3)
    rate[::10] = 0.95
    basis, _ = torch.linalg.qr(torch.randn(512, 512, generator=g))
    weight, before = basis @ torch.diag(spectrum) @ basis.T, torch.get_num_threads()
    maps: dict[str, Callable[..., Tensor]] = {
        "cheap": lambda y, rate, x: torch.addcmul(x, rate * spectrum, torch.sin(y)),
        "product": lambda y, rate, x: torch.addcmul(x, rate, torch.sin(y @ weight)),
    }
    torch.set_num_threads(threads)
    candidates: dict[str, Callable[[], object]] = {}
    falls = {}
    for key, f in maps.items():
        for name in WINDOWS[1:]:
            solver, rows = solvers.get_solver(name, rtol=1e-5), []

            def solve(compact: bool, f: Any = f, solver: Any = solver, rows: Any = None) -> None:
                def counted(y: Tensor, *args: Tensor) -> Tensor:
                    if rows is not None:
                        rows.append(len(y))
                    return f(y, *args)

                solvers.solve(
                    counted, torch.zeros_like(x), rate, x, solver=solver, max_steps=200,
                    compact=compact,
                )  # fmt: skip

            solve(True, rows=rows)
            falls[f"{key} {name}"] = len(rows) * len(x) / sum(rows)
            candidates[f"{key} {name} True"] = lambda solve=solve: solve(True)
            candidates[f"{key} {name} False"] = lambda solve=solve: solve(False)
    seconds = interleaved(candidates, rounds=15)
    torch.set_num_threads(before)
    gains = {case: seconds[f"{case} False"] / seconds[f"{case} True"] for case in falls}
    table = [
        [case, f"{1e3 * seconds[f'{case} True']:.1f}", f"{1e3 * seconds[f'{case} False']:.1f}",
         f"{fall:.2f}", f"{gains[case]:.2f}"]
        for case, fall in falls.items()
    ]  # fmt: skip
    show(
        f"90 % easy samples, {threads} threads",
        ["f, solver", "ms with", "ms without", "rows fall by", "time falls by"], table,
    )  # fmt: skip
    benchmark.extra_info.update(gains)
    benchmark.pedantic(candidates["cheap anderson True"], rounds=3)
