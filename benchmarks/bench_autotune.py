"""What `solvers.autotune` brings over the default solver, on the shared problems.

The choice is made once, then raced against the default in interleaved rounds.
"""

from typing import Any

import pytest
import report
import torch
from shared_problems import PROBLEMS, relative_residuals
from timing import interleaved, show

import solvers

pytestmark = pytest.mark.benchmark

TOLERANCE = 1e-6
COLUMNS: report.Columns = {
    "problem": lambda row: row["problem"],
    "choice": lambda row: row["choice"],
    "ms": report.number("wall_ms", ".1f"),
    "evaluations": report.number("evaluations", "d"),
    "default ms": report.number("default_ms", ".1f"),
    "default evaluations": report.number("default_evaluations", "d"),
    "search, evaluations": report.number("search_evaluations", "d"),
}
NOTES = [
    "float32, tolerance 1e-6; the default is `anderson`. `search, evaluations`: calls of f that "
    "the choice itself took. Medians of interleaved rounds, made after the choice.",
]


@torch.no_grad()
def test_autotune(benchmark: Any) -> None:
    rows = [measure(name) for name in PROBLEMS]
    content = report.save("autotune", "autotune", rows, title="autotune against the default")
    report.write_markdown("autotune", "Autotune", content, COLUMNS, NOTES)
    show("autotune", list(COLUMNS), [[form(row) for form in COLUMNS.values()] for row in rows])
    benchmark.extra_info.update({row["problem"]: row["wall_ms"] for row in rows})
    benchmark.pedantic(lambda: None, rounds=1)
    assert all(row["residual"] <= 2 * TOLERANCE for row in rows)


def measure(name: str) -> report.Row:
    problem = PROBLEMS[name]()
    posed = problem.to(torch.float32)
    tuning = solvers.autotune(
        posed.f, posed.y0, *posed.args, rtol=TOLERANCE, atol=0.0, max_steps=problem.max_steps
    )

    def solve(solver: solvers.FixedPointSolver) -> solvers.Solution:
        return solvers.solve(
            posed.f, posed.y0, *posed.args, solver=solver, max_steps=problem.max_steps, throw=False
        )

    default = solvers.Anderson(rtol=TOLERANCE, atol=0.0)
    seconds = interleaved(
        {"tuned": lambda: solve(tuning.solver), "default": lambda: solve(default)}, report.rounds(7)
    )
    tuned = solve(tuning.solver)
    return {
        "problem": problem.title,
        "choice": tuning.table[0].solver,
        "wall_ms": 1e3 * seconds["tuned"],
        "default_ms": 1e3 * seconds["default"],
        "evaluations": tuned.num_evals,
        "default_evaluations": solve(default).num_evals,
        "search_evaluations": tuning.num_evals,
        "residual": relative_residuals(posed.f, tuned.value, *posed.args).max().item(),
        "verdict": tuning.verdict,
    }
