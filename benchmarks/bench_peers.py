"""Our solvers and other libraries' on four shared problems, judged by one independent residual."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report
import torch
from peers import Contender, Observed, compiled_contenders, our_contenders, their_contenders
from shared_problems import PROBLEMS, Posed, SharedProblem, relative_residuals
from timing import interleaved, show

pytestmark = pytest.mark.benchmark

# A solver that takes longer is interrupted; one that takes longer than SLOW is timed once.
LIMIT, SLOW = 6.0, 0.5
# Some solvers return f of the point they tested, whose residual differs a little.
SLACK = 2.0
CASES = [
    ("a", torch.float32, 1e-6),
    ("b", torch.float32, 1e-6),
    ("b", torch.float64, 1e-9),
    ("c", torch.float32, 1e-6),
    ("d", torch.float32, 1e-6),
]
COLUMNS: report.Columns = {
    "solver": lambda row: row["solver"],
    "ms": lambda row: row["note"] or f"{row['wall_ms']:.1f}",
    "evaluations": report.number("evaluations", "d"),
    "rows per sample": report.number("rows_per_sample", ".1f"),
    "worst residual": report.number("residual", ".1e"),
    "converged": lambda row: "yes" if row["converged"] else "no",
    "overhead": report.number("overhead", ".2f"),
    "time / torchdeq's": report.number("over_torchdeq", ".2f"),
    "compile ms": report.number("compile_ms", ".0f"),
}
NOTES = [
    "All start at zero, have the same budget, and stop at |f(y) - y| <= tolerance * |f(y)| for "
    "the worst sample. jaxopt and optimistix have absolute tolerances, halved until that holds.",
    "`worst residual` is recomputed from the returned value; `converged`: it is at most "
    f"{SLACK:g} times the tolerance. `ms`: median of interleaved rounds, after a warm-up; one "
    f"run if it takes more than {SLOW:g} s, interrupted after {LIMIT:g} s.",
    "`f compiled`: f went through `torch.compile`, the loop did not; `one graph`, and everything "
    "jitted by JAX, includes its loop. `compile ms`: the first call, compiling included; of the "
    "second solver over a compiled f, what the first has left to compile.",
    "`overhead`: time over as many bare calls of the same f on the whole batch; below 1 where "
    "samples left the batch. `time / torchdeq's`: over the quickest torchdeq solver of "
    "that family that converged.",
]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
@pytest.mark.parametrize(("name", "dtype", "tolerance"), CASES)
def test_peers(benchmark: Any, name: str, dtype: torch.dtype, tolerance: float) -> None:
    problem = PROBLEMS[name]()
    contenders = our_contenders() | compiled_contenders() | their_contenders()
    rows = measure(problem, contenders, dtype, tolerance, report.rounds(5))
    rows += measure_jax(problem, dtype, tolerance, report.rounds(5))
    compare_with_torchdeq(rows)
    title = f"{problem.title}, {str(dtype).removeprefix('torch.')}, tolerance {tolerance:g}"
    content = report.save(
        "peers", f"{name} {str(dtype).removeprefix('torch.')}", rows,
        title=title, tolerance=tolerance, max_steps=problem.max_steps, rounds=report.rounds(5),
    )  # fmt: skip
    report.write_markdown("peers", "Peers", content, COLUMNS, NOTES)
    report.dots("peers", content)
    show(title, list(COLUMNS), [[form(row) for form in COLUMNS.values()] for row in rows])
    benchmark.extra_info.update({row["solver"]: row["wall_ms"] for row in rows})
    benchmark.pedantic(lambda: None, rounds=1)
    assert any(row["converged"] for row in rows if row["library"] == "ours")


def measure(
    problem: SharedProblem,
    contenders: dict[str, Contender],
    dtype: torch.dtype,
    tolerance: float,
    rounds: int,
) -> list[report.Row]:
    """Evidence from one observed run of each, then time in interleaved rounds."""
    posed = problem.to(dtype)
    torch.compiler.reset()  # a limit on compiling counts what other problems needed
    compiled = dataclasses.replace(posed, f=torch.compile(posed.f))
    given = {name: compiled if it.compiled else posed for name, it in contenders.items()}
    first = {
        name: warm_up(it, given[name], tolerance, problem.max_steps)
        for name, it in contenders.items()
    }
    rows = {
        name: observe(name, contender, given[name], tolerance, problem.max_steps)
        for name, contender in contenders.items()
    }
    calls: dict[str, Callable[[], object]] = {}
    bare = {
        name: f"bare {rows[name]['evaluations']}{' compiled' * contender.compiled}"
        for name, contender in contenders.items()
    }
    for name, row in rows.items():
        f, y0, args = given[name].f, given[name].y0, given[name].args
        if row["wall_ms"] is not None and row["wall_ms"] < 1e3 * SLOW:
            calls[name] = functools.partial(
                contenders[name].solve, f, y0, args, tolerance, problem.max_steps
            )
        if row["wall_ms"] is not None:
            calls[bare[name]] = functools.partial(repeat, given[name], row["evaluations"])
    seconds = interleaved(calls, rounds)
    for name, row in rows.items():
        if contenders[name].compiled or contenders[name].graph:
            row["compile_ms"] = 1e3 * first[name]
        if row["wall_ms"] is not None:
            row["wall_ms"] = 1e3 * seconds.get(name, row["wall_ms"] / 1e3)
            row["overhead"] = row["wall_ms"] / 1e3 / seconds[bare[name]]
    return list(rows.values())


def warm_up(contender: Contender, posed: Posed, tolerance: float, max_steps: int) -> float:
    """Seconds of a first use: what is loaded or compiled then is no solver's time.

    Compiled maps are given all batch sizes that they will meet; the others need two steps.
    """
    whole = contender.compiled or contender.graph
    rtol, budget = (tolerance, max_steps) if whole else (0.5, 2)
    began = time.perf_counter()
    with contextlib.suppress(RuntimeError, ValueError, ArithmeticError):
        contender.solve(posed.f, posed.y0, posed.args, rtol, budget)
    return time.perf_counter() - began


def observe(
    name: str, contender: Contender, posed: Posed, tolerance: float, max_steps: int
) -> report.Row:
    """Run once: calls, rows, the residual of what came back; and the time, cut off at LIMIT."""
    f = Observed(posed.f, LIMIT)
    row = blank(name, contender.library, contender.family)
    began = time.perf_counter()
    try:
        given = posed.f if contender.graph else f
        answer = contender.solve(given, posed.y0, posed.args, tolerance, max_steps)
    except TimeoutError as error:
        return row | {"note": str(error)}
    except (RuntimeError, ValueError, ArithmeticError) as error:
        if contender.library == "ours":
            raise
        return row | {"note": type(error).__name__}
    row["wall_ms"] = 1e3 * (time.perf_counter() - began)
    row["evaluations"] = answer.evaluations if contender.graph else f.evaluations
    row["rows_per_sample"] = row["evaluations"] if contender.graph else f.rows / len(posed.y0)
    judge(row, posed, answer.value, tolerance)
    return row


def blank(name: str, library: str, family: str) -> report.Row:
    return {
        "solver": name, "library": library, "family": family, "wall_ms": None,
        "evaluations": None, "rows_per_sample": None, "residual": None, "converged": False,
        "overhead": None, "over_torchdeq": None, "compile_ms": None, "note": "",
    }  # fmt: skip


def judge(row: report.Row, posed: Posed, value: torch.Tensor, tolerance: float) -> None:
    """The same evidence for everyone, from the returned value alone."""
    worst = float(relative_residuals(posed.f, value, *posed.args).max())
    row["residual"] = worst if math.isfinite(worst) else None
    row["converged"] = worst <= SLACK * tolerance


def repeat(posed: Posed, count: int) -> torch.Tensor:
    y = posed.y0
    for _ in range(count):
        y = posed.f(y, *posed.args)
    return y


def compare_with_torchdeq(rows: list[report.Row]) -> None:
    """Divide by the quickest of torchdeq's solvers of the same family that did converge."""
    quickest: dict[str, float] = {}
    for row in rows:
        if row["library"] == "torchdeq" and row["converged"]:
            best = quickest.get(row["family"], math.inf)
            quickest[row["family"]] = min(best, row["wall_ms"])
    for row in rows:
        if row["family"] in quickest and row["wall_ms"] is not None:
            row["over_torchdeq"] = row["wall_ms"] / quickest[row["family"]]


def jax_python() -> str | None:
    """An interpreter with jaxopt: the one that JAX_PYTHON names, or this one."""
    if "JAX_PYTHON" in os.environ:
        return os.environ["JAX_PYTHON"]
    return sys.executable if importlib.util.find_spec("jaxopt") else None


def measure_jax(
    problem: SharedProblem, dtype: torch.dtype, tolerance: float, rounds: int
) -> list[report.Row]:
    """Time the JAX libraries in a process of their own, and judge what they return here."""
    python = jax_python()
    if python is None:
        print("JAX libraries left out: set JAX_PYTHON to an interpreter that has jaxopt.")
        return []
    setting = {
        "kind": problem.kind, "dtype": str(dtype).removeprefix("torch."), "rtol": tolerance,
        "shape": problem.shape, "max_steps": problem.max_steps, "rounds": rounds, "slack": SLACK,
    }  # fmt: skip
    arrays = {f"weight:{key}": value for key, value in problem.weights.items()}
    arrays |= {f"arg:{key}": value for key, value in problem.args.items()}
    with tempfile.TemporaryDirectory() as place:
        given, returned = Path(place, "problem.npz"), Path(place, "answers.npz")
        np.savez(given, setting=np.array(json.dumps(setting)), **arrays)
        script = Path(__file__).with_name("jax_peers.py")
        run = subprocess.run(
            [python, script, given, returned], capture_output=True, text=True, check=False
        )
        if run.returncode:
            pytest.fail(f"jax_peers.py failed:\n{run.stderr[-2000:]}")
        answers = dict(np.load(returned))
    rows, posed = [], problem.to(dtype)
    for found in json.loads(run.stdout.splitlines()[-1]):
        library, family = found["solver"].split(",")[0].split()
        row = blank(found["solver"], library, family) | found
        row["rows_per_sample"] = float(found["evaluations"])
        judge(row, posed, torch.from_numpy(answers[found["solver"]]), tolerance)
        rows.append(row)
    return rows
