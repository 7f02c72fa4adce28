"""What only one solver promises."""

import pytest
import torch
from problems import distance, linear, rotation
from torch import Tensor

import solvers
from solvers import Anderson, Broyden, Picard


def test_picard_with_damping_reaches_eigenvalues_below_minus_one() -> None:
    x = torch.ones(2, 3, dtype=torch.float64)

    def f(y: Tensor, x: Tensor) -> Tensor:
        return -1.5 * y + x

    plain = solvers.solve(f, 0 * x, x, solver=Picard(), max_steps=200, throw=False)
    damped = solvers.solve(f, 0 * x, x, solver=Picard(damping=0.5), max_steps=200)
    assert not plain.converged.any()
    assert torch.allclose(damped.value, x / 2.5, atol=1e-4)


def test_picard_is_the_plain_iteration() -> None:
    p = linear(0.9, normal=True)
    y = p.y0
    for _ in range(4):
        y = 0.3 * y + 0.7 * p.f(y, *p.args)
    s = solvers.solve(p.f, p.y0, *p.args, solver=Picard(damping=0.3), max_steps=4, throw=False)
    assert torch.allclose(s.value, y)


@pytest.mark.parametrize("solver", [Anderson(history=8), Broyden(history=12)])
def test_linear_problem_of_n_dims_takes_few_more_than_n_steps(
    solver: solvers.FixedPointSolver,
) -> None:
    p = linear(0.99, normal=False)
    tight = type(solver)(history=solver.history, rtol=1e-9)  # type: ignore[attr-defined,call-arg]
    s = solvers.solve(p.f, p.y0, *p.args, solver=tight, max_steps=60)
    n = p.y0.shape[1]
    assert s.num_evals <= (n + 4 if isinstance(solver, Anderson) else 2 * n + 6)


@pytest.mark.parametrize("name", ["anderson", "broyden"])
def test_solves_a_rotation_that_picard_cannot(name: str) -> None:
    p = rotation(1.2)
    s = solvers.solve(p.f, p.y0, *p.args, solver=name, max_steps=50)
    assert distance(s.value, p.y_star) < 1e-4
    plain = solvers.solve(p.f, p.y0, *p.args, solver="picard", max_steps=50, throw=False)
    assert not plain.converged.any()


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1.0, 1e4])
def test_anderson_counts_do_not_depend_on_units(scale: float) -> None:
    """torchdeq's absolute regularisation doubles its evaluations at 1e-4."""
    p = linear(0.9, normal=True)
    (x,) = p.args
    solver = Anderson(rtol=1e-8, atol=0.0)
    s = solvers.solve(p.f, p.y0, scale * x, solver=solver, max_steps=200)
    assert s.num_evals == solvers.solve(p.f, p.y0, x, solver=solver, max_steps=200).num_evals


@pytest.mark.parametrize("name", ["anderson", "broyden"])
def test_window_of_one_works(name: str) -> None:
    p = linear(0.5, normal=True)
    solver = solvers.get_solver(name, history=1)
    assert solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=100).converged.all()


@pytest.mark.parametrize("name", ["anderson", "broyden"])
@pytest.mark.parametrize("ridge", [0.0, 1e-8])
def test_singular_histories_do_not_crash(name: str, ridge: float) -> None:
    """All steps lie on one line, so that the window's matrix has rank one."""
    options = {"ridge": ridge} if name == "anderson" else {}
    solver = solvers.get_solver(name, rtol=1e-12, atol=0.0, **options)
    direction = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def f(y: Tensor, x: Tensor) -> Tensor:
        return torch.cos((y @ direction)[:, None]) * direction / 14 + x

    x = torch.zeros(2, 3, dtype=torch.float64)
    s = solvers.solve(f, x, x, solver=solver, max_steps=60)
    assert torch.allclose(s.value @ direction, torch.full((2,), 0.7390851332, dtype=torch.float64))


def test_constant_map_is_solved_in_one_step() -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for name in solvers.names():
        s = solvers.solve(lambda y, x: x + 0 * y, torch.zeros(2, 3), x, solver=name)
        assert int(s.num_steps.max()) == 1


def test_broyden_equals_the_textbook() -> None:
    """B <- B + (dg - B s) s^T / s^T s from B = -I, on g(y) = f(y) - y, dense."""
    g = torch.Generator().manual_seed(0)
    weight = 0.3 * torch.randn(5, 5, generator=g, dtype=torch.float64)
    x = torch.randn(5, generator=g, dtype=torch.float64)

    def f(y: Tensor) -> Tensor:
        return torch.tanh(y @ weight.T + x)

    y, inverse = torch.zeros(5, dtype=torch.float64), -torch.eye(5, dtype=torch.float64)
    matrix = inverse.clone()
    for count in range(1, 9):
        residual = f(y) - y
        step = -torch.linalg.solve(matrix, residual)
        y_next = y + step
        change = (f(y_next) - y_next) - residual
        matrix = matrix + torch.outer(change - matrix @ step, step) / (step @ step)
        y = y_next
        s = solvers.solve(
            f, torch.zeros(1, 5, dtype=torch.float64), solver=Broyden(rtol=0.0, atol=0.0),
            max_steps=count, throw=False,
        )  # fmt: skip
        assert torch.allclose(s.value[0], y, atol=1e-9), count


def test_broyden_grows_with_the_steps_taken_not_with_the_budget() -> None:
    """torchdeq allocates 2 * batch * dim * max_iter numbers at once."""
    solver, y = Broyden(history=500), torch.randn(2, 8, dtype=torch.float64)
    carry = solver.init(y)
    for _ in range(4):
        y, carry = solver.step(y, 0.5 * y.cos(), carry)
    assert carry.left.shape[1] <= 4


@pytest.mark.parametrize("name", ["anderson", "broyden"])
def test_a_rolling_window_forgets_the_oldest(name: str) -> None:
    """After many more steps than slots the solve still converges."""
    p = linear(0.99, normal=True)
    solver = solvers.get_solver(name, history=4, rtol=1e-8)
    s = solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=2000)
    assert distance(s.value, p.y_star) < 1e-3
    assert s.num_evals > 6
