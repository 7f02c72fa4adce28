"""No solver makes a false claim on any problem of the zoo, however difficult.

The fast part runs one seed of every kind and dtype; `-m slow` and `-m long` run all.
"""

import math

import pytest
import torch
import zoo
from parameters import long
from zoo import KINDS, MAX_STEPS, Specimen, evidence, specimen, specimens

import solvers
from solvers import Result, Solution

NATIVE = [name for name in solvers.names() if "." not in name]
EACH = pytest.mark.parametrize("name", NATIVE)
# A step of this one is a whole linear solve.
BUDGETS = {"newton_krylov": 30, "robust": 120}
# The solvers and kinds of which `make test-slow` takes the whole grid; the rest is `long`.
OFTEN = ("picard", "anderson", "broyden")
HARD = {
    "discontinuous",
    "no_fixed_point",
    "near_singular",
    "poisoned",
    "runaway",
    "saturated",
    "far",
}
# Relative error of a residual computed in float32 (or float64) over at most 64 entries.
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-5}


def run(name: str, p: Specimen, max_steps: int) -> Solution:
    """Solve, and check that evaluations are counted exactly."""
    calls = [0]

    def f(y: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return p.f(y, *args)

    solver = solvers.get_solver(name, rtol=p.rtol, atol=0.0)
    s = solvers.solve(f, p.y0, *p.args, solver=solver, max_steps=max_steps, throw=False)
    assert s.num_evals == calls[0], str(p)
    assert int(s.num_steps.max()) <= max_steps, str(p)
    return s


def check(p: Specimen, s: Solution) -> None:
    """Compare every claim with norms recomputed in float64 at the returned value."""
    rounding = ROUNDING[p.y0.dtype]
    residual, scale = evidence(p, s.value)
    started, start_scale = evidence(p, p.y0)
    limit = p.rtol * scale
    # A residual that did not fall is measured at the scale of the start. Far off, where rounding
    # may hide it, it proves nothing.
    excess = torch.minimum(residual / (0.1 * started), residual / (p.rtol * start_scale))
    hidden = torch.finfo(p.y0.dtype).eps / 2 * scale > 0.1 * started
    hidden &= 0.1 * scale > torch.maximum(started, start_scale)
    assert torch.isin(s.result, torch.tensor([int(code) for code in Result])).all(), str(p)
    assert torch.equal(s.converged, s.result == Result.converged), str(p)
    within = (residual <= limit * (1 + rounding)) & residual.isfinite()
    within &= excess.nan_to_num(0.0) <= 1 + rounding
    assert within[s.converged].all(), f"{p}: false claim of convergence"
    beyond = (residual >= limit * (1 - rounding)) | ~residual.isfinite()
    beyond |= (excess.nan_to_num(0.0) >= 1 - rounding) | hidden
    assert beyond[~s.converged].all(), f"{p}: a failure that is none"
    reported = s.residual.double() * math.sqrt(p.y0.shape[1])
    # A residual below the smallest number of its dtype is reported as 0.
    finest = torch.finfo(s.residual.dtype)
    smallest = finest.tiny * finest.eps * math.sqrt(p.y0.shape[1])
    close = torch.isclose(reported, residual, rtol=rounding, atol=smallest)
    assert (close | ~residual.isfinite()).all(), f"{p}: residual is not that of the value"
    worse = residual > started * (1 + rounding)
    assert not (worse & ~s.converged).any(), f"{p}: a failed sample is worse than its start"
    finite = p.y0.isfinite().all(1)
    assert s.value[finite].isfinite().all(), f"{p}: not finite"
    assert (s.result[p.broken] == Result.nonfinite).all(), f"{p}: a broken sample has a verdict"
    if p.solvable is False:
        assert not s.converged.any(), f"{p}: nothing can converge"


@EACH
@pytest.mark.parametrize("kind", KINDS)
def test_no_claim_is_false(name: str, kind: str) -> None:
    for p in specimens(1, [kind]):
        check(p, run(name, p, BUDGETS.get(name, MAX_STEPS) // 6))


@pytest.mark.parametrize(
    ("name", "kind"),
    [long(name, kind, unless=name in OFTEN and kind in HARD) for name in NATIVE for kind in KINDS],
)
def test_no_claim_is_false_in_the_whole_zoo(name: str, kind: str) -> None:
    for p in specimens(kinds=[kind]):
        check(p, run(name, p, BUDGETS.get(name, MAX_STEPS)))


@pytest.mark.parametrize("kind", KINDS)
def test_picard_converges_where_it_must_and_fails_where_it_must(kind: str) -> None:
    for p in specimens(2, [kind]):
        if p.picard is not None and p.y0.dtype != torch.bfloat16:
            s = run("picard", p, MAX_STEPS)
            check(p, s)
            assert (s.converged[~p.broken] == p.picard).all(), str(p)


@EACH
@pytest.mark.parametrize("kind", ["contractive", "rotating", "constant", "tiny", "huge", "far"])
def test_every_solver_converges_on_a_contraction(name: str, kind: str) -> None:
    if (name, kind) == ("picard", "far"):
        pytest.skip("at a rate of 0.9999 the budget does not suffice")
    for p in specimens(2, [kind]):
        s = run(name, p, BUDGETS.get(name, MAX_STEPS))
        assert p.solvable is None or s.converged.all(), f"{p}: {s.describe()}"


@EACH
def test_a_broken_sample_harms_no_other(name: str) -> None:
    for p in specimens(3, ["poisoned"]):
        s = run(name, p, BUDGETS.get(name, MAX_STEPS))
        assert s.converged[~p.broken].all(), f"{p}: {s.describe()}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_specimen_is_the_same_each_time_and_in_every_batch(kind: str) -> None:
    """The checks above rely on this."""
    for p in specimens(2, [kind]):
        again = specimen(kind, p.seed, p.y0.dtype)
        assert all(map(same, (p.y0, *p.args), (again.y0, *again.args)))
        whole = p.f(p.y0, *p.args)
        for count in range(1, len(p.y0)):
            part = p.f(p.y0[count:], *(arg[count:] for arg in p.args))
            assert same(part, whole[count:]), str(p)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0))


def test_the_zoo_is_large_and_diverse() -> None:
    assert len(KINDS) * len(zoo.DTYPES) * zoo.SEEDS >= 1000
    rows, sizes = zip(*(p.y0.shape for p in specimens(kinds=list(KINDS)[:6])), strict=True)
    assert min(rows) == min(sizes) == 1
    assert max(rows) == 16
    assert max(sizes) > 60


def test_the_check_of_claims_holds_at_any_scale() -> None:
    for kind in ("tiny", "huge"):
        p = specimen(kind, 0, torch.float64)
        residual, scale = evidence(p, torch.zeros_like(p.y0))
        assert torch.allclose(residual / scale, torch.ones_like(scale))
        assert (residual > 0).all()
