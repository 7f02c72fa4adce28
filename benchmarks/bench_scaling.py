"""Time and peak memory of a solve against the size of the state, for a cheap map."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import report
import torch
from memory import peak_of
from peers import native_names
from timing import interleaved, show
from torch import Tensor

import solvers

pytestmark = pytest.mark.benchmark

SIZES = [10**n for n in range(3, 8)]
SAMPLES, STEPS, MEGABYTE = 10, 10, 2**20
# Beyond, a run takes seconds: two rounds will do.
QUICK = 10**6
# Below, the fixed cost of a call dominates; the exponents are those of the sizes above.
LARGE = 10**5


@torch.no_grad()
def test_scaling(benchmark: Any) -> None:
    rows = []
    for size in SIZES:
        rows += measure(size, report.rounds(5))
    exponents = {name: fit(rows, name) for name in native_names()}
    report.save(
        "scaling", "float32", rows, steps=STEPS, samples=SAMPLES, exponents=exponents,
        exponents_above=LARGE,
    )  # fmt: skip
    plot(rows)
    show(
        f"{STEPS} steps of y -> 0.9 tanh(y) + x; exponents of time and memory above {LARGE}",
        ["solver", *(f"{size:.0e} ms" for size in SIZES), "states held", "time", "memory"],
        [summary(rows, name, exponents[name]) for name in native_names()],
    )
    benchmark.extra_info.update(exponents)
    benchmark.pedantic(lambda: None, rounds=1)
    assert all(exponent["memory"] < 1.05 for exponent in exponents.values())


def measure(size: int, rounds: int) -> list[report.Row]:
    """A fixed number of steps of every solver on states of `size` numbers in all."""
    x = torch.randn(SAMPLES, size // SAMPLES, generator=torch.Generator().manual_seed(0))
    observed = {name: observe(name, x) for name in native_names()}
    calls: dict[str, Callable[[], object]] = {"f": lambda: cheap(x, x)}
    calls |= {name: functools.partial(solve, name, x) for name in native_names()}
    seconds = interleaved(calls, rounds if size <= QUICK else 2)
    rows = []
    for name, (peak, evaluations) in observed.items():
        taken = seconds[name]
        rows.append(
            {
                "solver": name, "size": size, "ms": 1e3 * taken, "peak_bytes": peak,
                "states_held": peak / (4 * size), "evaluations": evaluations,
                "f_ms": 1e3 * seconds["f"], "overhead": taken / (evaluations * seconds["f"]),
            }
        )  # fmt: skip
    return rows


def observe(name: str, x: Tensor) -> tuple[int, int]:
    """Peak memory and evaluations of one run."""
    counts = []
    peak = peak_of(lambda: counts.append(solve(name, x).num_evals))
    return peak, counts[0]


def cheap(y: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(y).mul_(0.9).add_(x)


def solve(name: str, x: Tensor) -> solvers.Solution:
    # No residual is small enough, so that all take the same number of steps.
    solver = solvers.get_solver(name, rtol=0.0, atol=0.0)
    return solvers.solve(cheap, torch.zeros_like(x), x, solver=solver, max_steps=STEPS, throw=False)


def fit(rows: list[report.Row], name: str) -> dict[str, float]:
    """Slopes of log(time) and log(memory) over log(size)."""
    mine = [row for row in rows if row["solver"] == name and row["size"] >= LARGE]
    across = np.log([row["size"] for row in mine])
    return {
        quantity: float(np.polyfit(across, np.log([row[key] for row in mine]), 1)[0])
        for quantity, key in (("time", "ms"), ("memory", "peak_bytes"))
    }


def summary(rows: list[report.Row], name: str, exponent: dict[str, float]) -> list[str]:
    mine = [row for row in rows if row["solver"] == name]
    return [
        name, *(f"{row['ms']:.2f}" for row in mine), f"{mine[-1]['states_held']:.1f}",
        f"{exponent['time']:.2f}", f"{exponent['memory']:.2f}",
    ]  # fmt: skip


def plot(rows: list[report.Row]) -> None:
    """Needs the rows alone, so that `redraw.py` can draw the picture anew."""
    names = list(dict.fromkeys(row["solver"] for row in rows))

    def series(key: str, unit: float) -> dict[str, tuple[list[float], list[float]]]:
        return {
            name: (
                [row["size"] for row in rows if row["solver"] == name],
                [row[key] / unit for row in rows if row["solver"] == name],
            )
            for name in names
        }

    panels = {
        f"time of {STEPS} steps (ms)": series("ms", 1),
        "peak memory (MiB)": series("peak_bytes", MEGABYTE),
    }
    title = f"{STEPS} steps of y \N{RIGHTWARDS ARROW} 0.9 tanh(y) + x on {SAMPLES} samples"
    report.curves("scaling", panels, "numbers in the state", title)
