"""Every solver on every problem: it reaches the answer, or says that it did not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import PROBLEMS, Problem, distance, leaves, linear, residual, rms
from torch import Tensor

import solvers
from solvers import Result

NAMES = solvers.names()
EACH = pytest.mark.parametrize("name", NAMES)
ON_EACH = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)


def counting(f: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    rows: list[int] = []

    def counted(y: Any, *args: Tensor) -> Any:
        rows.append(len(leaves(y)[0]))
        return f(y, *args)

    return counted, rows


@EACH
@ON_EACH
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_reaches_the_answer_in_float64(name: str, problem: Problem, rows: int) -> None:
    p = problem.to(torch.float64, rows)
    solver = solvers.get_solver(name, rtol=1e-10, atol=1e-12)
    s = solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=3000, throw=False)
    check_evidence(s, p, rtol=1e-10, atol=1e-12)
    if p.contracts:
        assert s.converged.all(), s.describe()
    if bool(s.converged.all()):
        # A residual r leaves an error of about r / (1 - radius), more where W is not normal.
        largest = 1 + max(float(leaf.abs().max()) for leaf in leaves(p.y_star))
        assert distance(s.value, p.y_star) < 10e-10 * largest / max(1 - p.radius, 0.01)


@EACH
@ON_EACH
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float16, 1e-2)]
)
def test_narrow_dtypes(name: str, problem: Problem, dtype: torch.dtype, rtol: float) -> None:
    p = problem.to(dtype, 3)
    solver = solvers.get_solver(name, rtol=rtol)
    s = solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=1000, throw=False)
    assert all(leaf.dtype == dtype for leaf in leaves(s.value))
    assert s.residual.dtype == torch.float32
    check_evidence(s, p, rtol=rtol, atol=1e-8, slack=1e-3)
    if p.contracts and p.radius < 0.95 and dtype == torch.float32:
        assert s.converged.all(), s.describe()


def check_evidence(
    s: solvers.Solution, p: Problem, rtol: float, atol: float, slack: float = 1e-9
) -> None:
    """The residual is the one at `value`, and no verdict of convergence is false."""
    true = residual(p.f, s.value, *p.args)
    finite = s.residual.isfinite()
    assert torch.allclose(s.residual.double()[finite], true[finite], rtol=1e-3, atol=slack * 10)
    scale = rms(p.f(s.value, *p.args))
    assert (true <= (atol + rtol * scale) * 1.01 + slack)[s.converged].all()


@EACH
def test_evaluations_are_counted_exactly(name: str) -> None:
    p = linear(0.9, normal=True)
    f, rows = counting(p.f)
    s = solvers.solve(f, p.y0, *p.args, solver=name, max_steps=500)
    assert s.num_evals == len(rows)
    assert s.rows_evaluated == sum(rows)
    assert s.num_evals == int(s.num_steps.max()) + 1


@EACH
@pytest.mark.parametrize("max_steps", range(11))
def test_every_small_budget_makes_progress_and_tells_the_truth(name: str, max_steps: int) -> None:
    """The published puzzle solver has a relative error of 100 % after 4, 5 and 6 steps here."""
    p = linear(0.5, normal=True)
    s = solvers.solve(p.f, p.y0, *p.args, solver=name, max_steps=max_steps, throw=False)
    error = distance(s.value, p.y_star)
    assert error <= 0.5**max_steps * distance(p.y0, p.y_star) * 4 + 1e-4
    assert torch.allclose(s.residual.double(), residual(p.f, s.value, *p.args))
    assert int(s.num_steps.max()) <= max_steps
    assert s.num_evals <= max_steps + 1


@EACH
def test_no_steps_return_the_start(name: str) -> None:
    p = linear(0.5, normal=True)
    s = solvers.solve(p.f, p.y0, *p.args, solver=name, max_steps=0, throw=False)
    assert torch.equal(s.value, p.y0)
    assert s.num_evals == 1
    assert (s.result == Result.max_steps).all()


@EACH
def test_divergence_is_reported_and_the_best_point_returned(name: str) -> None:
    y0 = torch.full((3, 4), 5.0, dtype=torch.float64)

    def f(y: Tensor, x: Tensor) -> Tensor:
        return y + y.abs() + x  # has no fixed point: the residual is at least x = 1

    s = solvers.solve(f, y0, torch.ones_like(y0), solver=name, max_steps=60, throw=False)
    assert not s.converged.any()
    assert torch.allclose(s.residual, residual(f, s.value, torch.ones_like(y0)))
    assert (s.residual <= residual(f, y0, torch.ones_like(y0)) + 1e-12).all()


def test_diverging_linear_map_is_called_diverged() -> None:
    y0 = torch.ones(3, 4, dtype=torch.float64)
    s = solvers.solve(lambda y: 2 * y + 1, y0, solver="picard", max_steps=60, throw=False)
    assert (s.result == Result.diverged).all()


@EACH
def test_infinite_values_never_count_as_converged(name: str) -> None:
    y0 = torch.ones(2, 3)
    s = solvers.solve(lambda y: y * float("inf"), y0, solver=name, throw=False)
    assert (s.result == Result.nonfinite).all()


@EACH
def test_noise_floor_is_recognised_long_before_the_budget(name: str) -> None:
    """Of a map that is only accurate to bfloat16, as under autocast."""
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))

    def f(y: Tensor, x: Tensor) -> Tensor:
        return (0.5 * torch.tanh(y * 3) + x).bfloat16().float()

    s = solvers.solve(
        f, torch.zeros_like(x), x, solver=solvers.get_solver(name, rtol=1e-7, atol=0.0),
        max_steps=2000, throw=False,
    )  # fmt: skip
    assert s.num_evals < 200
    assert s.residual.max() < 1e-1


@EACH
def test_already_solved_costs_one_evaluation(name: str) -> None:
    p = linear(0.9, normal=True)
    s = solvers.solve(p.f, p.y_star, *p.args, solver=name)
    assert s.num_evals == 1
    assert torch.equal(s.value, p.y_star)


@EACH
def test_empty_batch(name: str) -> None:
    s = solvers.solve(lambda y, x: y + x, torch.zeros(0, 3), torch.zeros(0, 3), solver=name)
    assert s.value.shape == (0, 3)
    assert s.residual.shape == s.num_steps.shape == (0,)
    assert s.num_evals == 0


@EACH
def test_nothing_is_recorded(name: str) -> None:
    p = linear(0.5, normal=True)
    x = p.args[0].clone().requires_grad_()
    assert not solvers.solve(p.f, p.y0, x, solver=name).value.requires_grad
