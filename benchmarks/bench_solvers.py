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
