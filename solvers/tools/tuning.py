"""The result of `autotune`: the winner, a row per candidate, and a readable table."""

import dataclasses
import math
from typing import Any

from solvers.base import FixedPointSolver
from solvers.compiler import LoopName


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What was measured of one candidate.

    Attributes:
        solver: Registered name, and the options that differ from its defaults, without
            tolerances.
        converged: Share of the samples that converged; None if no solve ended.
        worst_residual: Largest rms(f(y) - y) / rms(f(y)) over the samples, measured anew at
            the point returned; inf if not finite, None if the candidate did not end.
        num_evals: Calls of `f` in one solve, exactly; or until it was broken off.
        rows_evaluated: Rows of the batch that `f` saw in these.
        seconds: Median over the rounds, or the time of the first solve if it took part in none;
            a lower bound if that was broken off, inf if it could not run.
        reason: Why it won or lost.
    """

    solver: str
    converged: float | None
    worst_residual: float | None
    num_evals: int
    rows_evaluated: int
    seconds: float
    reason: str

    def cells(self) -> tuple[str, ...]:
        """The row for a printed table."""
        share = worst = "-"
        if self.converged is not None and self.worst_residual is not None:
            # Rounded down: 100 % means all.
            share = f"{math.floor(1000 * self.converged) / 10:g} %"
            worst = f"{self.worst_residual:.1e}"
        bound = "> " if self.converged is None else ""
        took = f"{bound}{1e3 * self.seconds:.3g}" if self.seconds < math.inf else "-"
        counts = f"{self.num_evals}", f"{self.rows_evaluated}"
        return (self.solver, share, worst, *counts, took, self.reason)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningResult:
    """The solver that won, and the evidence.

    Attributes:
        solver: The winner at the requested tolerances, for `solve(solver=...)`.
        name: Its registered name: `get_solver(name, **options)` builds it again.
        options: All of its options.
        loop: The loop that it ran in, for `solve(loop=...)`: "eager", or "graph" where those were
            tried.
        table: A row per candidate, the winner first.
        num_evals: Calls of `f` that the whole choice took, exactly.
        advice: What went wrong and what to do if not all samples converged; otherwise empty.
        verdict: One sentence that says why the winner won.
    """

    solver: FixedPointSolver
    name: str
    options: dict[str, Any]
    loop: LoopName
    table: tuple[Trial, ...]
    num_evals: int
    advice: str
    verdict: str

    def __str__(self) -> str:
        header = ("solver", "converged", "worst", "evals", "rows", "ms", "why")
        rows = [header, *(trial.cells() for trial in self.table)]
        return "\n".join([*aligned(rows), *filter(None, (self.advice, self.verdict))])


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of a table: the first and last column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *numbers, last in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, last]))
    return lines
