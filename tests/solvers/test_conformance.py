"""Every solver on every problem: it reaches the answer, or says that it did not."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import (
    ONE_CALL_A_STEP,
    PROBLEMS,
    Problem,
    affine,
    distance,
    leaves,
    linear,
    residual,
    rms,
)
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
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [
        (torch.float64, 1e-10),
        (torch.float32, 1e-4),
        (torch.bfloat16, 3e-2),
        (torch.float16, 1e-2),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_reaches_the_answer_or_says_that_it_did_not(
    name: str, problem: Problem, rows: int, dtype: torch.dtype, rtol: float
) -> None:
    p = problem.to(dtype, rows)
    f, seen = counting(p.f)
    solver = solvers.get_solver(name, rtol=rtol, atol=1e-12)
    max_steps = 3000 if dtype == torch.float64 else 1000
    s = solvers.solve(f, p.y0, *p.args, solver=solver, max_steps=max_steps, throw=False)
    check_evidence(s, p, rtol=rtol, atol=1e-12)
    assert s.num_evals == len(seen)
    assert s.rows_evaluated == sum(seen)
    assert int(s.num_steps.max()) <= max_steps
    assert all(leaf.dtype == dtype for leaf in leaves(s.value))
    assert s.residual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if p.contracts and (dtype == torch.float64 or (dtype == torch.float32 and p.radius < 0.95)):
        assert s.converged.all(), s.describe()


def check_evidence(s: solvers.Solution, p: Problem, rtol: float, atol: float) -> None:
    """The residual is the one at `value`, no verdict is false, and what converged is near y*."""
    largest = 1 + max(float(leaf.abs().max()) for leaf in (*leaves(p.y_star), *leaves(s.value)))
    # The same row of f may be rounded differently in a batch of another size.
    rounding = 4 * torch.finfo(leaves(s.value)[0].dtype).eps * largest
    true = residual(p.f, s.value, *p.args)
    finite = s.residual.isfinite()
    assert torch.allclose(s.residual.double()[finite], true[finite], rtol=1e-3, atol=rounding)
    scale = rms(p.f(s.value, *p.args))
    assert (true <= (atol + rtol * scale) * 1.001 + rounding)[s.converged].all()
    if bool(s.converged.all()) and p.amplification * rounding < 0.1 * largest:
        size = p.jacobian.shape[-1] ** 0.5
        bound = 2 * p.amplification * size * (float(true.max()) + rounding)
        assert distance(s.value, p.y_star) <= bound


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_steps", range(1, 7))
def test_residual_is_that_of_the_rounded_state(
    name: str, dtype: torch.dtype, max_steps: int
) -> None:
    """Iterates are mixed in float32, but judged as the state's dtype can hold them."""
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)

    def f(y: Tensor, x: Tensor) -> Tensor:
        return 0.8 * torch.tanh(y.roll(1, -1)) + x

    solver = solvers.get_solver(name, rtol=1e-6)
    s = solvers.solve(f, 0 * x, x, solver=solver, max_steps=max_steps, throw=False)
    assert torch.allclose(s.residual.double(), residual(f, s.value, x), rtol=1e-5, atol=0)


@EACH
def test_the_slowest_sample_sets_the_number_of_evaluations(name: str) -> None:
    p = linear(0.9, normal=True)
    s = solvers.solve(p.f, p.y0, *p.args, solver=name, max_steps=500)
    once = name in ONE_CALL_A_STEP
    most = int(s.num_steps.max()) + 1
    assert s.num_evals == most if once else s.num_evals >= most


@EACH
def test_every_small_budget_makes_progress_and_tells_the_truth(name: str) -> None:
    """The published puzzle solver has a relative error of 100 % after 4, 5 and 6 steps here."""
    p = linear(0.5, normal=True)
    start = residual(p.f, p.y0, *p.args)
    for max_steps in range(2 * getattr(solvers.get_solver(name), "history", 5) + 1):
        f, seen = counting(p.f)
        s = solvers.solve(f, p.y0, *p.args, solver=name, max_steps=max_steps, throw=False)
        error = distance(s.value, p.y_star)
        assert error <= 0.5**max_steps * distance(p.y0, p.y_star) * 4 + 1e-4, max_steps
        assert torch.allclose(s.residual, residual(p.f, s.value, *p.args))
        assert (s.residual <= start * (1 + 1e-12)).all()
        assert int(s.num_steps.max()) <= max_steps
        assert s.num_evals == len(seen)
        assert s.num_evals <= max_steps + 1 or name not in ONE_CALL_A_STEP


@EACH
@pytest.mark.parametrize("normal", [True, False])
@pytest.mark.parametrize("max_steps", range(11))
def test_no_budget_returns_a_point_worse_than_the_start(
    name: str, normal: bool, max_steps: int
) -> None:
    """Of maps whose residual grows before it falls, too."""
    p = linear(0.99, normal=normal)
    s = solvers.solve(p.f, p.y0, *p.args, solver=name, max_steps=max_steps, throw=False)
    true = residual(p.f, s.value, *p.args)
    assert torch.allclose(s.residual, true)
    assert (true <= residual(p.f, p.y0, *p.args) * (1 + 1e-12)).all()


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
    options = {"rtol": 1e-7, "atol": 0.0}
    if name == "scipy.krylov":  # its differences must be larger than the noise
        options["difference"] = 0.06
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))

    def f(y: Tensor, x: Tensor) -> Tensor:
        return (0.5 * torch.tanh(y * 3) + x).bfloat16().float()

    s = solvers.solve(
        f, torch.zeros_like(x), x, solver=solvers.get_solver(name, **options),
        max_steps=2000, throw=False,
    )  # fmt: skip
    if name in ONE_CALL_A_STEP:
        assert s.num_evals < 200
    else:  # a step is worth many calls, and Newton's tries several ways on
        assert int(s.num_steps.max()) < 400
    assert s.residual.max() < 1e-1


@pytest.mark.parametrize(("decay", "angle"), [(0.97, 0.1), (0.98, 0.05), (0.99, 0.03)])
def test_a_long_spiral_into_the_answer_is_no_stall(decay: float, angle: float) -> None:
    """The residual along an ellipse sets no record for half a turn, far above any noise."""
    sine, cosine = math.sin(angle), math.cos(angle)
    turn = torch.tensor([[cosine, -30 * sine], [sine / 30, cosine]], dtype=torch.float64)
    p = affine("spiral", decay * turn, torch.ones(1, 2, dtype=torch.float64), decay)
    solver = solvers.Picard(rtol=1e-6)
    s = solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=3000, throw=False)
    assert s.converged.all(), s.describe()


F32, F64 = torch.float32, torch.float64


@EACH
@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(1e-30, F32), (1e-25, F32), (1e20, F32), (1e30, F32), (1e-165, F64), (1e160, F64)],
)
def test_no_scale_breaks_the_verdict(name: str, scale: float, dtype: torch.dtype) -> None:
    """Tiny residuals become 0 and count as converged; large values count as infinite."""
    x = torch.full((2, 3), scale, dtype=dtype)
    solver = solvers.get_solver(name, atol=0.0)
    s = solvers.solve(lambda y, x: 0.5 * y + x, 0 * x, x, solver=solver, throw=False)
    assert s.converged.all()
    assert torch.allclose(s.value / scale, torch.full_like(x, 2.0), rtol=1e-3)


def test_a_contraction_that_oscillates_late_is_no_stall() -> None:
    """Radius 0.99 and complex eigenvalues: the residual pauses for dozens of steps."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=g, dtype=torch.float64)
    weight *= 0.99 / torch.linalg.eigvals(weight).abs().max()
    p = affine("random", weight, torch.randn(8, 64, generator=g, dtype=torch.float64), 0.99)
    solver = solvers.Picard(rtol=1e-6)
    s = solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=3000, throw=False)
    assert s.converged.all(), s.describe()


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


@pytest.mark.parametrize("name", ONE_CALL_A_STEP)
def test_a_map_that_takes_gradients_leaves_no_graph_behind(name: str) -> None:
    """What an energy's gradient returns has a graph, grad mode or not."""
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    attached = []

    def f(y: Tensor) -> Tensor:
        attached.append(y.requires_grad)
        with torch.enable_grad():
            z = y if y.requires_grad else y.detach().requires_grad_()
            energy = (0.5 * z.square() + theta * z.cos() - z).sum()
            return z - 0.5 * torch.autograd.grad(energy, z, create_graph=True)[0]

    s = solvers.solve(f, torch.zeros(3, dtype=torch.float64), solver=name, batch_dims=0)
    expected = torch.ones(3, dtype=torch.float64)
    assert torch.allclose(s.value - theta.detach() * s.value.sin(), expected, atol=1e-4)
    assert not any(attached)
    assert not s.value.requires_grad
