"""What the solvers with a window of past steps promise, Anderson and Broyden."""

import pytest
import torch
from torch import Tensor

import solvers
from solvers.testing.problems import distance, linear, rotation

WINDOWED = pytest.mark.parametrize("name", ["anderson", "broyden"])


@WINDOWED
def test_solves_a_rotation_that_picard_cannot(name: str) -> None:
    p = rotation(1.2)
    s = solvers.solve(p.f, p.y0, *p.args, solver=name, max_steps=50)
    assert distance(s.value, p.y_star) < 1e-4
    plain = solvers.solve(p.f, p.y0, *p.args, solver="picard", max_steps=50, throw=False)
    assert not plain.converged.any()


@WINDOWED
def test_window_of_one_works(name: str) -> None:
    p = linear(0.5, normal=True)
    solver = solvers.get_solver(name, history=1)
    assert solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=100).converged.all()


@WINDOWED
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


@WINDOWED
def test_a_rolling_window_forgets_the_oldest(name: str) -> None:
    """After many more steps than slots the solve still converges."""
    p = linear(0.99, normal=True)
    solver = solvers.get_solver(name, history=4, rtol=1e-8)
    s = solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=2000)
    assert distance(s.value, p.y_star) < 1e-3
    assert s.num_evals > 6


@WINDOWED
@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_change_neither_cost_nor_answer(name: str, scale: float, dtype: torch.dtype) -> None:
    p = linear(0.9, normal=True).to(dtype, 5)
    (x,) = p.args
    solver = solvers.get_solver(name, rtol=1e-4, atol=0.0)
    a = solvers.solve(p.f, p.y0, x, solver=solver, max_steps=200)
    b = solvers.solve(p.f, p.y0, scale * x, solver=solver, max_steps=200)
    assert abs(a.num_evals - b.num_evals) <= 1
    assert torch.allclose(b.value / scale, a.value, rtol=1e-2, atol=1e-2)


@WINDOWED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_states_are_mixed_in_float32(name: str, dtype: torch.dtype) -> None:
    """torchdeq fails: its `lu_cpu` is not implemented for these dtypes."""
    p = linear(0.9, normal=True).to(dtype, 5)
    solver = solvers.get_solver(name, rtol=2e-2)
    s = solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=60, throw=False)
    assert leaves_finite(s.value)
    assert s.value.dtype == dtype
    assert s.residual.dtype == torch.float32
    assert s.converged.all()
    memory = [leaf for leaf in solver.init(p.y0.float()) if isinstance(leaf, Tensor)]
    windows = [leaf for leaf in memory if leaf.shape[-1] == p.y0.shape[1]]
    assert windows
    assert {leaf.dtype for leaf in windows} == {torch.float32}


def leaves_finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())


@WINDOWED
def test_a_sample_that_stands_still_does_not_disturb_the_step(name: str) -> None:
    """One row of the window holds zero differences, the others regular ones."""
    solver = solvers.get_solver(name)
    y = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    still = torch.tensor([[True], [False]])
    carry = solver.init(y)
    for _ in range(4):
        y, carry = solver.step(y, torch.where(still, y, 0.5 * y.cos()), carry)
        assert y.isfinite().all()
    assert torch.equal(y[0], torch.tensor([1.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("name", ["anderson", "anderson_safe", "anderson_type1"])
def test_damping_weighs_the_extrapolated_old_iterate(name: str) -> None:
    """The next iterate is (1 - damping) * (extrapolated f) + damping * (extrapolated y)."""

    def third(damping: float) -> Tensor:
        solver = solvers.get_solver(name, damping=damping)
        points = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)).double()
        carry = solver.init(points[0])
        for y in points:
            y_next, carry = solver.step(y, 0.5 * y.cos(), carry)
        return y_next

    plain, quarter, half = third(0.0), third(0.25), third(0.5)
    assert not torch.allclose(plain, half)
    assert torch.allclose(half - plain, 2 * (quarter - plain))
