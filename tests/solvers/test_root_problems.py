"""The 23 root problems: each solver fails on those that are declared here, and on no other.

They are posed as `solvers.root` does, y = y - g(y), with an absolute tolerance. Success is that of
NonlinearSolve.jl's own test, max |g| <= 1e-4.
"""

import pytest
import torch
from root_problems import PROBLEMS, RootProblem
from torch import Tensor

import solvers
from solvers import Result, Solution

MAX_STEPS, SUCCESS = 400, 1e-4

EVERY_PLAIN = {
    *("rosenbrock", "powell singular", "powell badly scaled", "wood", "helical valley", "watson"),
    *("brown almost linear", "trigonometric", "variably dimensioned", "broyden tridiagonal"),
    *("broyden banded", "dennis schnabel", "cubic origin", "double root", "freudenstein roth"),
}
FAILS: dict[str, set[str]] = {
    "aitken": {
        *("rosenbrock", "powell singular", "powell badly scaled", "wood", "helical valley"),
        *("watson", "trigonometric", "broyden tridiagonal", "dennis schnabel"),
        "freudenstein roth",
    },
    "anderson": {
        *("rosenbrock", "wood", "variably dimensioned", "helical valley"),
        *("hammarling 2", "hammarling 3"),
    },
    "anderson_safe": {"rosenbrock", "wood", "watson", "brown almost linear", "trigonometric"},
    "anderson_type1": {"rosenbrock", "wood", "brown almost linear", "variably dimensioned"}
    | {"helical valley", "broyden tridiagonal", "freudenstein roth"},
    "broyden": {
        *("rosenbrock", "wood", "watson", "powell singular", "helical valley", "trigonometric"),
        *("broyden tridiagonal", "broyden banded"),
    },
    "newton_krylov": {"freudenstein roth"},
    "picard": EVERY_PLAIN | {"boundary value", "hammarling 2", "hammarling 3", "boggs"},
    "robust": set(),
    "squarem": EVERY_PLAIN | {"boggs"},
}
# Outcomes that differ between starts 1e-13 apart, since they depend on rounding.
CHAOTIC: dict[str, set[str]] = {
    "anderson": {"freudenstein roth"},
    "anderson_safe": {"helical valley"},
    "anderson_type1": {
        *("powell singular", "trigonometric", "hammarling 2", "hammarling 3", "cubic origin"),
        "boggs",
    },
    "broyden": {"freudenstein roth", "boggs"},
}
NATIVE = [name for name in solvers.names() if "." not in name]
EACH = pytest.mark.parametrize("name", NATIVE)


def solve(name: str, p: RootProblem, sign: float = -1.0) -> Solution:
    solver = solvers.get_solver(name, rtol=0.0, atol=1e-8)
    return solvers.solve(
        lambda y: y + sign * p.g(y), p.y0[None], solver=solver, max_steps=MAX_STEPS, throw=False
    )


def worst(p: RootProblem, y: Tensor) -> float:
    return float(p.g(y).abs().max())


@EACH
def test_fails_where_declared_and_nowhere_else(name: str) -> None:
    fails = set()
    for p in PROBLEMS:
        s = solve(name, p)
        if not worst(p, s.value) <= SUCCESS:
            fails.add(p.name)
            assert not s.converged.any(), f"{p.name}: false claim"
    chaotic = CHAOTIC.get(name, set())
    assert fails - chaotic == FAILS[name]


def test_newton_does_not_depend_on_the_sign() -> None:
    fails = {p.name for p in PROBLEMS if not worst(p, solve("newton_krylov", p, 1.0).value) <= 1e-4}
    assert fails == FAILS["newton_krylov"]


def test_robust_says_which_solver_converged() -> None:
    answered = {}
    for p in PROBLEMS:
        s = solve("robust", p)
        assert s.solved_by is not None
        answered[p.name] = s.tried[int(s.solved_by)]
    assert answered["double root"] == "anderson"
    assert answered["rosenbrock"] == "newton_krylov"


@pytest.mark.parametrize("name", ["newton_krylov", "robust"])
def test_iterates_of_a_sample_do_not_depend_on_its_batch(name: str) -> None:
    """Fifty starts around Powell's singular valley, together and one by one."""
    p = PROBLEMS[1]
    noise = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y0 = p.y0 + 0.1 * noise
    f = lambda y, _: y - p.g(y)  # noqa: E731
    solver = solvers.get_solver(name, rtol=0.0, atol=1e-8)
    whole = solvers.solve(f, y0, y0, solver=solver, max_steps=MAX_STEPS, throw=False)
    for i in range(0, 50, 7):
        alone = solvers.solve(
            f, y0[i : i + 1], y0[i : i + 1], solver=solver, max_steps=MAX_STEPS, throw=False
        )
        assert alone.num_steps == whole.num_steps[i]
        assert torch.allclose(alone.value[0], whole.value[i], rtol=0, atol=1e-9)


def test_a_standstill_is_called_stalled_at_once() -> None:
    """No real root: |g| has its minimum, 1, at 0."""
    calls = 0

    def f(y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return y - (y.square() + 1)

    y0 = torch.ones(1, 1, dtype=torch.float64)
    s = solvers.solve(f, y0, solver="newton_krylov", max_steps=3000, throw=False)
    assert s.result == Result.stalled
    assert calls < 150


@pytest.mark.parametrize(
    ("g", "start", "root"),
    [
        (lambda y: y.log() + 2, 10.0, 0.1353352832366127),
        (lambda y: y.sqrt() - 1e-3, 4.0, 1e-6),
        (lambda y: 1 / y - 50, 1.0, 0.02),
    ],
)
def test_a_trial_outside_the_domain_shortens_the_step(g: object, start: float, root: float) -> None:
    assert callable(g)
    y0 = torch.full((1, 1), start, dtype=torch.float64)
    solver = solvers.NewtonKrylov(rtol=0.0, atol=1e-10)
    s = solvers.root(g, y0, solver=solver, max_steps=100)
    assert float(s.value) == pytest.approx(root, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_singular_jacobian_does_no_harm(rank: int) -> None:
    """A consistent linear system of deficient rank, and a start where g' vanishes in part."""
    g = torch.Generator().manual_seed(rank)
    left = torch.randn(5, rank, generator=g, dtype=torch.float64)
    right = torch.randn(rank, 5, generator=g, dtype=torch.float64)
    b = left @ torch.ones(rank, dtype=torch.float64)
    s = solvers.root(
        lambda y: y @ (left @ right).T - b, torch.zeros(1, 5, dtype=torch.float64),
        solver=solvers.NewtonKrylov(rtol=0.0, atol=1e-10),
    )  # fmt: skip
    assert s.converged.all()


def test_scales_from_1_to_1e7_take_few_steps() -> None:
    scale = torch.tensor([1.0, 3.0, 1e7], dtype=torch.float64)
    s = solvers.root(lambda y: scale * y - 1, torch.zeros(1, 3, dtype=torch.float64),
                     solver=solvers.NewtonKrylov(rtol=0.0, atol=1e-9))  # fmt: skip
    assert torch.allclose(s.value[0], 1 / scale, rtol=1e-6, atol=0)
    assert int(s.num_steps) < 10
