"""What only Broyden promises."""

import pytest
import torch
from torch import Tensor

import solvers
from solvers import Broyden
from solvers.testing.problems import linear, residual


def test_linear_problem_of_n_dims_takes_two_n_steps() -> None:
    """Gay 1979: good Broyden with full memory ends after 2 n steps in exact arithmetic."""
    p = linear(0.99, normal=False)
    s = solvers.solve(p.f, p.y0, *p.args, solver=Broyden(history=20, rtol=1e-9), max_steps=60)
    assert s.num_evals <= 2 * p.y0.shape[1] + 6


@pytest.mark.parametrize("history", [1, 2, 3, 20])
def test_broyden_equals_the_textbook(history: int) -> None:
    """B <- B + (dg - B s) s^T / s^T s from B = -I, on g(y) = f(y) - y, dense.

    A restart begins with B = -I and the newest pair, which fills two places in the memory.
    """
    g = torch.Generator().manual_seed(0)
    weight = 0.3 * torch.randn(5, 5, generator=g, dtype=torch.float64)
    x = torch.randn(5, generator=g, dtype=torch.float64)

    def f(y: Tensor) -> Tensor:
        return torch.tanh(y @ weight.T + x)

    y, eye = torch.zeros(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    matrix, places = -eye, 0
    for count in range(1, 9):
        residual = f(y) - y
        step = -torch.linalg.solve(matrix, residual)
        y_next = y + step
        change = (f(y_next) - y_next) - residual
        matrix, places = (-eye, 2) if places > history else (matrix, places + 1)
        matrix = matrix + torch.outer(change - matrix @ step, step) / (step @ step)
        y = y_next
        s = solvers.solve(
            f, torch.zeros(1, 5, dtype=torch.float64),
            solver=Broyden(rtol=0.0, atol=0.0, history=history), max_steps=count, throw=False,
        )  # fmt: skip
        assert torch.allclose(s.value[0], y, atol=1e-9), count


@pytest.mark.parametrize("history", [2, 20])
def test_the_estimate_of_the_inverse_is_that_of_the_textbook(history: int) -> None:
    """`transposed_inverse` applies -B^-T, without the newest update except after a restart."""
    g = torch.Generator().manual_seed(0)
    weight, x, v = (torch.randn(n, 5, generator=g, dtype=torch.float64) for n in (5, 1, 1))

    def f(y: Tensor) -> Tensor:
        return torch.tanh(0.3 * y @ weight.T + x)

    solver, eye, y = (
        Broyden(history=history),
        torch.eye(5, dtype=torch.float64),
        torch.zeros_like(x),
    )
    carry, matrix, places, points = solver.init(y), -eye, 0, [y]
    for _ in range(7):
        y, carry = solver.step(y, f(y), carry)
        estimate = matrix
        if len(points) > 1:
            before, after = points[-2:]
            step = (after - before)[0]
            change = (f(after) - f(before))[0] - step
            restarts = places > history
            matrix, places = (-eye, 2) if restarts else (matrix, places + 1)
            matrix = matrix + torch.outer(change - matrix @ step, step) / (step @ step)
            estimate = matrix if restarts else estimate
        points.append(y)
        true = -torch.linalg.solve(estimate.T, v[0])
        assert torch.allclose(carry.transposed_inverse(v)[0], true)


def test_broyden_grows_with_the_steps_taken_not_with_the_budget() -> None:
    """torchdeq allocates 2 * batch * dim * max_iter numbers at once."""
    solver, y = Broyden(history=500), torch.randn(2, 8, dtype=torch.float64)
    carry = solver.init(y)
    for _ in range(4):
        y, carry = solver.step(y, 0.5 * y.cos(), carry)
    assert carry.steps.shape[1] <= 4
    for _ in range(20):
        y, carry = solver.step(y, 0.5 * y.cos(), carry)
    assert carry.steps.shape[1] <= 2 * 24


def test_a_restart_whose_numbers_leave_their_range_is_a_plain_step() -> None:
    y = torch.ones(1, 2, dtype=torch.float64)
    carry = Broyden(history=1).init(y)._replace(point=0 * y, fy=-1e308 * y, filled=2)
    y_next, carry = carry.restart(y, -1.7e308 * y)
    assert torch.equal(y_next, -1.7e308 * y)
    assert carry.steps.isfinite().all()


def test_memory_stops_growing_at_the_window() -> None:
    solver, y = Broyden(history=6), torch.randn(2, 8, dtype=torch.float64)
    carry = solver.init(y)
    for _ in range(30):
        y, carry = solver.step(y, 0.5 * y.cos() + 0.4 * y.roll(1, 1), carry)
    # Six updates make seven steps; g has the slot behind them, and needs no memory elsewhere.
    assert carry.steps.shape[1] == carry.system.shape[1] == 8


@pytest.mark.parametrize("normal", [True, False])
@pytest.mark.parametrize("history", [4, 5, 6, 8, 12])
def test_limited_memory_survives_a_stiff_problem(history: int, normal: bool) -> None:
    """torchdeq's stalls or turns NaN at radius 0.99 for every window tried."""
    p = linear(0.99, normal=normal)
    solver = Broyden(history=history, rtol=1e-8)
    s = solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=200)
    assert s.value.isfinite().all()


@pytest.mark.parametrize("history", [1, 2, 3])
def test_a_window_too_short_fails_without_a_false_claim(history: int) -> None:
    p = linear(0.99, normal=True)
    solver = Broyden(history=history, rtol=1e-8)
    s = solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=200, throw=False)
    assert torch.allclose(s.residual, residual(p.f, s.value, *p.args))
    assert (s.residual <= residual(p.f, p.y0, *p.args)).all()


@pytest.mark.parametrize("far", [float("nan"), float("inf"), -float("inf")])
def test_a_system_whose_numbers_leave_their_range_gets_no_weight(far: float) -> None:
    solver, y = Broyden(), torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    carry = solver.init(y)
    for _ in range(2):
        y, carry = solver.step(y, 0.5 * y.cos(), carry)
    rhs = torch.tensor([[far], [1.0]], dtype=torch.float64)
    weights = carry.coefficients(rhs)
    assert weights[0].item() == 0
    assert weights[1].item() != 0
