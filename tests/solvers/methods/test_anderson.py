"""What only Anderson promises."""

import pytest
import torch
from torch import Tensor

import solvers
from solvers import Anderson, Picard
from solvers.testing.problems import PROBLEMS, Problem, distance, linear

LINEAR = [problem for problem in PROBLEMS if problem.name.startswith(("linear", "rotation"))]


@pytest.mark.parametrize("problem", LINEAR, ids=lambda problem: problem.name)
def test_linear_problem_of_n_dims_takes_n_plus_two_evaluations(problem: Problem) -> None:
    """In exact arithmetic, with a window of n; the ridge may cost one more."""
    p = problem
    n = p.y0.shape[1]
    exact = Anderson(history=n, ridge=0.0, rtol=1e-8)
    s = solvers.solve(p.f, p.y0, *p.args, solver=exact, max_steps=60)
    assert s.num_evals <= n + 2
    assert distance(s.value, p.y_star) < 1e-5
    default = Anderson(history=n, rtol=1e-8)
    assert solvers.solve(p.f, p.y0, *p.args, solver=default, max_steps=60).num_evals <= n + 3


def test_equals_the_textbook() -> None:
    """min |g - dG w|^2 by a dense least-squares solve, then y <- f(y) - dF w, damped."""
    p = linear(0.9, normal=False).to(torch.float64, 1)
    f, (x,) = p.f, p.args
    damping, window = 0.2, 3
    ys, fys = [p.y0], [f(p.y0, x)]
    for count in range(1, 9):
        g = [fy - y for y, fy in zip(ys, fys, strict=True)]
        y_next = damping * ys[-1] + (1 - damping) * fys[-1]
        if len(ys) > 1:
            recent = range(max(1, len(ys) - window), len(ys))
            dg = torch.cat([g[i] - g[i - 1] for i in recent]).T
            df = torch.cat([fys[i] - fys[i - 1] for i in recent]).T
            w = torch.linalg.lstsq(dg, g[-1].T).solution
            y_next = fys[-1] - (df @ w).T - damping * (g[-1] - (dg @ w).T)
        ys.append(y_next)
        fys.append(f(y_next, x))
        solver = Anderson(history=window, damping=damping, ridge=0.0, rtol=0.0, atol=0.0)
        last = []

        def watched(y: Tensor, x: Tensor, last: list[Tensor] = last) -> Tensor:
            last.append(y.clone())
            return f(y, x)

        solvers.solve(watched, p.y0, x, solver=solver, max_steps=count, throw=False)
        assert torch.allclose(last[-1], ys[-1], atol=1e-8), count


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1.0, 1e4])
def test_anderson_counts_do_not_depend_on_units(scale: float) -> None:
    """torchdeq's absolute regularisation doubles its evaluations at 1e-4."""
    p = linear(0.9, normal=True)
    (x,) = p.args
    solver = Anderson(rtol=1e-8, atol=0.0)
    s = solvers.solve(p.f, p.y0, scale * x, solver=solver, max_steps=200)
    assert s.num_evals == solvers.solve(p.f, p.y0, x, solver=solver, max_steps=200).num_evals


@pytest.mark.parametrize("problem", LINEAR, ids=lambda problem: problem.name)
def test_never_needs_many_more_evaluations_than_picard(problem: Problem) -> None:
    """torchdeq takes 80 where Picard takes 38, at radius 0.9 with its default regularisation."""
    p = problem
    solve = {
        kind: solvers.solve(p.f, p.y0, *p.args, solver=kind(rtol=1e-6), max_steps=3000, throw=False)
        for kind in (Anderson, Picard)
    }
    assert solve[Anderson].converged.all()
    assert solve[Anderson].num_evals <= solve[Picard].num_evals


@pytest.mark.parametrize("ridge", [0.0, 1e-8, 1e-2])
def test_a_heavier_ridge_still_converges(ridge: float) -> None:
    p = linear(0.9, normal=True)
    solver = Anderson(ridge=ridge, rtol=1e-8)
    assert solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=500).converged.all()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_window_larger_than_the_state_does_not_break_float32(size: int) -> None:
    """With a ridge below the dtype's rounding, weights of dependent differences are arbitrary."""
    s = solvers.solve(
        lambda y, x: 0.9 * y.sin() + x, torch.zeros(1, size), torch.ones(1, size), throw=False
    )
    assert s.converged.all(), s.describe()


@pytest.mark.parametrize("stiffness", [[1e4], [1.0, 2.0, 3.0, 4.0, 1e4], [1e7], [1.0, 1e3, 1e7]])
def test_stiff_linear_maps_converge_in_few_steps(stiffness: list[float]) -> None:
    """With a ridge of 1e-6, float64 would not converge where |J| is above 1e6."""
    k = torch.tensor(stiffness, dtype=torch.float64)
    b = torch.ones(1, len(k), dtype=torch.float64)
    s = solvers.solve(lambda y: b - k * y, b, max_steps=15, throw=False)
    assert s.converged.all(), s.describe()


@pytest.mark.parametrize("solver", [Anderson(ridge=0.0), solvers.AndersonType1()])
def test_the_estimate_of_the_inverse_is_exact_once_the_window_spans_the_space(
    solver: Anderson | solvers.AndersonType1,
) -> None:
    """`transposed_inverse` applies (I - J^T)^-1 for an affine map."""
    matrix, v, y = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    jacobian = 0.2 * matrix
    carry = solver.init(y[:1])
    assert torch.equal(carry.transposed_inverse(v[:1]), v[:1])  # nothing is known yet
    for point in torch.cat((y, v)):
        _, carry = solver.step(point[None], point[None] @ jacobian.T + 1, carry)
    true = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - jacobian.T, v[0])
    assert torch.allclose(carry.transposed_inverse(v[:1])[0], true)
