"""Every solver on every problem: it reaches the answer, or says that it did not.

The properties are those of `solvers.testing`, which run on a solver of anyone; one test for each.
"""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parameters import PEERS_WHEN_SLOW, long, slow

import solvers
from solvers import Result, testing
from solvers.testing import PROPERTIES, SEEDED, samples, tokens
from solvers.testing.problems import affine

EACH = pytest.mark.parametrize("name", PEERS_WHEN_SLOW)
SEEDS = st.integers(0, 10_000)
# The other properties take more parameters than a seed, and are tested below.
DRAWN = [prop for prop in SEEDED if len(inspect.signature(prop).parameters) == 2]


# Every problem, dtype and batch size: most of the time of these properties.
GRID = testing.answers.reaches_the_answer_or_says_that_it_did_not
WHOLE_GRID = ("picard", "anderson", "newton_krylov", "robust")


@pytest.mark.parametrize(
    ("prop", "name"),
    [
        long(prop, name)
        if prop is GRID and "torchdeq" in name
        else slow(prop, name, unless="." not in name and (prop is not GRID or name in WHOLE_GRID))
        for prop in PROPERTIES
        for name in solvers.names()
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_property(prop: testing.Property, name: str) -> None:
    assert list(prop(solvers.get_solver(name))) == []


@pytest.mark.parametrize("name", ["bicgstab", slow("gmres"), slow("neumann")])
def test_linear_solvers_keep_the_suite(name: str) -> None:
    testing.check(name, seeds=1)


@EACH
@pytest.mark.parametrize("prop", DRAWN, ids=lambda prop: prop.__name__)
@given(seed=SEEDS)
def test_property_of_drawn_problems(name: str, prop: testing.Property, seed: int) -> None:
    assert list(prop(solvers.get_solver(name), seed)) == []


@EACH
@given(seed=SEEDS, exponent=st.integers(-12, 12))
def test_any_scale_of_any_problem(name: str, seed: int, exponent: int) -> None:
    prop = samples.scaling_the_problem_scales_the_answer
    assert list(prop(solvers.get_solver(name), seed, exponent)) == []


@EACH
@given(
    seed=SEEDS,
    sample=st.integers(0, 5),
    where=st.sampled_from(["y0", "args"]),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_any_broken_sample(name: str, seed: int, sample: int, where: str, bad: float) -> None:
    prop = samples.a_broken_sample_stays_alone
    assert list(prop(solvers.get_solver(name), seed, sample, where, bad)) == []


@EACH
@given(seed=SEEDS, max_steps=st.integers(0, 30))
def test_any_budget_of_coupled_tokens(name: str, seed: int, max_steps: int) -> None:
    prop = tokens.coupled_tokens_report_the_joint_residual_at_any_budget
    assert list(prop(solvers.get_solver(name), seed, max_steps)) == []


@pytest.mark.slow
@EACH
def test_coupled_samples_report_the_joint_residual(name: str) -> None:
    prop = samples.coupled_samples_report_the_joint_residual_at_any_budget
    solver = solvers.get_solver(name)
    assert [failure for seed in range(60) for failure in prop(solver, seed)] == []


def test_the_suite_runs_every_property() -> None:
    """The properties are the public generator functions of a solver in `solvers.testing`."""
    found = {
        value
        for module in (testing.answers, samples, tokens)
        for value in vars(module).values()
        if inspect.isgeneratorfunction(value)
        and value.__module__ == module.__name__
        and next(iter(inspect.signature(value).parameters)) == "solver"
        and not value.__name__.startswith("_")
    }
    assert found == {*PROPERTIES, *SEEDED}


def test_diverging_linear_map_is_called_diverged() -> None:
    y0 = torch.ones(3, 4, dtype=torch.float64)
    s = solvers.solve(lambda y: 2 * y + 1, y0, solver="picard", max_steps=60, throw=False)
    assert (s.result == Result.diverged).all()


@pytest.mark.parametrize(("decay", "angle"), [(0.97, 0.1), (0.98, 0.05), (0.99, 0.03)])
def test_a_long_spiral_to_the_solution_is_not_called_stalled(decay: float, angle: float) -> None:
    """On an ellipse the residual sets no record for half a turn, although no noise limits it."""
    sine, cosine = math.sin(angle), math.cos(angle)
    turn = torch.tensor([[cosine, -30 * sine], [sine / 30, cosine]], dtype=torch.float64)
    p = affine("spiral", decay * turn, torch.ones(1, 2, dtype=torch.float64), decay)
    solver = solvers.Picard(rtol=1e-6)
    s = solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=3000, throw=False)
    assert s.converged.all(), s.describe()


def test_a_contraction_that_oscillates_late_is_not_called_stalled() -> None:
    """Radius 0.99 and complex eigenvalues: the residual pauses for dozens of steps."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=g, dtype=torch.float64)
    weight *= 0.99 / torch.linalg.eigvals(weight).abs().max()
    p = affine("random", weight, torch.randn(8, 64, generator=g, dtype=torch.float64), 0.99)
    solver = solvers.Picard(rtol=1e-6)
    s = solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=3000, throw=False)
    assert s.converged.all(), s.describe()
