"""How often each solver succeeds on the zoo, and how often it says so without having done it."""

import collections
import math
import time
import warnings
from typing import Any

import pytest
import report
import torch
from peers import Contender, Observed, our_contenders, their_contenders
from timing import show
from zoo import DTYPES, KINDS, MAX_STEPS, Specimen, evidence, specimens

pytestmark = pytest.mark.benchmark

# Problems of every kind and dtype; BENCH_SEEDS sets another number.
SEEDS = 17
# One solve may take this long, and no more: the problems are small.
LIMIT = 1.0
# Some solvers return f of the point they tested, whose residual differs a little.
SLACK = 2.0
# A step of these is a whole linear solve.
BUDGETS = {"newton_krylov": 30, "scipy newton_krylov": 30}
# Without a fixed point, a residual within tolerance is no success.
HOPELESS = ("divergent", "no_fixed_point")
NOTES = [
    "Share of sound samples, in percent, whose returned value has |f(y) - y| <= 2 * tolerance * "
    "|f(y)|, recomputed in float64 from the value alone; 2 because some solvers return f of the "
    f"point they tested. Tolerance 1e-8 in float64, 1e-5 in float32, 3e-2 in bfloat16; {MAX_STEPS} "
    "steps, or 30 outer ones of Newton-Krylov; at most 1 s each.",
    "`false claims`: samples for which the solver claims success (ours by `converged`, torchdeq by "
    "the residual it records, SciPy by not raising) and whose value, recomputed, exceeds twice the "
    "tolerance or is not finite. `unsaid`: samples within tolerance for which it claims nothing. "
    "`raised`, `late`: problems that ended in an exception, or were interrupted.",
    f"Without a fixed point ({', '.join(HOPELESS)}) the figure is how often a point was found that "
    "meets the relative criterion far out, where |f(y)| is large. `discontinuous` and `noisy` have "
    "a point within tolerance only by luck.",
]


@torch.no_grad()
def test_zoo(benchmark: Any) -> None:
    contenders = our_contenders() | their_contenders()
    tallies = {name: Tally() for name in contenders}
    for p in specimens(report.setting_or("BENCH_SEEDS", SEEDS)):
        for name, contender in contenders.items():
            examine(name, contender, p, tallies[name])
    rows = [
        {"solver": name, "library": contenders[name].library, **tally.summary()}
        for name, tally in tallies.items()
    ]
    problems = sum(1 for _ in specimens(report.setting_or("BENCH_SEEDS", SEEDS)))
    content = report.save("zoo", "zoo", rows, title=f"{problems} problems", problems=problems)
    columns = table_columns()
    report.write_markdown("zoo", "Zoo", content, columns, NOTES)
    show("success in percent", list(columns), [[c(row) for c in columns.values()] for row in rows])
    benchmark.extra_info.update({row["solver"]: row["success"] for row in rows})
    benchmark.pedantic(lambda: None, rounds=1)
    assert not any(row["false_claims"] for row in rows if row["library"] == "ours")


class Tally:
    """What one solver did, sample by sample."""

    def __init__(self) -> None:
        self.success: dict[tuple[str, str], list[bool]] = collections.defaultdict(list)
        self.false_claims: list[str] = []
        self.unsaid = self.raised = self.late = 0
        self.seconds = 0.0

    def add(self, p: Specimen, within: torch.Tensor, claimed: torch.Tensor) -> None:
        sound = ~p.broken
        dtype = str(p.y0.dtype).removeprefix("torch.")
        self.success[p.kind, dtype] += within[sound].tolist()
        self.false_claims += [str(p)] * int((claimed & ~within).sum())
        self.unsaid += int((within & ~claimed).sum())

    def summary(self) -> report.Row:
        kinds = {kind: self.share(lambda key, kind=kind: key[0] == kind) for kind in KINDS}
        dtypes = {dtype: self.share(lambda key, dtype=dtype: key[1] == dtype) for dtype in DTYPES}
        return {
            "success": self.share(lambda key: key[0] not in HOPELESS),
            "kinds": kinds, "dtypes": dtypes, "false_claims": len(self.false_claims),
            "false_on": sorted(set(self.false_claims))[:20], "unsaid": self.unsaid,
            "raised": self.raised, "late": self.late, "seconds": round(self.seconds, 2),
        }  # fmt: skip

    def share(self, wanted: Any) -> float:
        """Percentage of success over some of the kinds and dtypes."""
        found = [one for key, part in self.success.items() if wanted(key) for one in part]
        return 100 * sum(found) / len(found)


def examine(name: str, contender: Contender, p: Specimen, tally: Tally) -> None:
    """Solve one problem, and judge what comes back like everyone else's."""
    f = Observed(p.f, LIMIT)
    nothing = torch.zeros(len(p.y0), dtype=torch.bool)
    within = claimed = nothing
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if contender.library != "ours" else "error")
            budget = BUDGETS.get(name, MAX_STEPS)
            answer = contender.solve(f, p.y0, p.args, p.rtol, budget)
        residual, scale = evidence(p, answer.value)
        within = (residual <= SLACK * p.rtol * scale) & (residual < math.inf)
        claimed = answer.claimed
    except TimeoutError:
        tally.late += 1
    except (RuntimeError, ValueError, ArithmeticError, IndexError):
        if contender.library == "ours":
            raise
        tally.raised += 1
    tally.seconds += time.perf_counter() - began
    tally.add(p, within, claimed)


def table_columns() -> report.Columns:
    def part(group: str, key: str) -> Any:
        return lambda row: f"{row[group][key]:.0f}"

    columns: report.Columns = {
        "solver": lambda row: row["solver"],
        "success": report.number("success", ".1f"),
        "false claims": report.number("false_claims", "d"),
        "unsaid": report.number("unsaid", "d"),
        "raised": report.number("raised", "d"),
        "late": report.number("late", "d"),
        "s": report.number("seconds", ".0f"),
    }
    columns |= {dtype: part("dtypes", dtype) for dtype in DTYPES}
    return columns | {kind.replace("_", " "): part("kinds", kind) for kind in KINDS}
