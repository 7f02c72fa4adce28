"""Peers: their faults stay out. The conformance suite runs on them among the slow tests."""

import dataclasses
import importlib.util
import math
from typing import Any, ClassVar

import pytest
import torch
from forks import Run
from torch import Tensor

import solvers
from implicit import fixed_point
from implicit.testing.oracles import dense_gradient, relative_error, solve_densely
from solvers import Result
from solvers.contrib import PeerSolver, TorchdeqAnderson
from solvers.testing.problems import distance, linear, residual, tanh

NAMES = [name for name in solvers.names() if "." in name]
EACH = pytest.mark.parametrize("name", NAMES)
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def f(y: Tensor, x: Tensor = X) -> Tensor:
    return torch.tanh(0.7 * y.roll(1, -1) + x)


def test_adapters_are_registered_where_installed_and_load_their_package_when_used(
    new_process: Run,
) -> None:
    expected = {"scipy": ["anderson", "broyden1", "krylov"],
                "torchdeq": ["anderson", "broyden", "picard"]}  # fmt: skip
    assert [f"{package}.{name}" for package, names in expected.items()
            if importlib.util.find_spec(package) for name in names] == NAMES  # fmt: skip
    code = "import sys, solvers.contrib; assert not {'torchdeq', 'scipy.optimize'} & {*sys.modules}"
    assert new_process(code) == (0, "", "")


@EACH
def test_it_solves_what_it_should_and_counts_exactly(name: str) -> None:
    calls = []
    for p in (linear(0.9, normal=True), tanh()):
        solver = solvers.get_solver(name, rtol=1e-8)
        s = solvers.solve(lambda y, *args, p=p: (calls.append(1), p.f(y, *args))[1], p.y0, *p.args,
                          solver=solver, max_steps=500)  # fmt: skip
        assert distance(s.value, p.y_star) < 1e-5
        assert s.num_evals == len(calls)
        calls.clear()


@EACH
@pytest.mark.parametrize("max_steps", [0, 1, 2])
def test_the_first_steps_count_in_any_units(name: str, max_steps: int) -> None:
    """torchdeq's Anderson returns the start after 1 and 2 iterations."""
    for scale in (1e-12, 1.0, 1e12):
        start, exact = residual(f, 0 * X), solvers.get_solver(name, rtol=1e-9, atol=0.0)
        s = solvers.solve(lambda y, x, c=scale: c * f(y / c, x), 0 * X, X, solver=exact,
                          max_steps=max_steps, throw=False)  # fmt: skip
        assert (s.result == Result.max_steps).all()
        assert (s.num_steps == max_steps).all()
        assert ((s.residual / scale < start) | (max_steps == 0)).all()
        assert torch.allclose(s.residual / scale, residual(f, s.value / scale))


@EACH
@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize("with_args", [True, False])
def test_gradient_equals_the_dense_one(name: str, batch_dims: int, with_args: bool) -> None:
    x = X[:3].clone().requires_grad_()
    tight = solvers.get_solver(name, rtol=1e-12, atol=1e-14)
    given = (f, 0 * X[:3], x) if with_args else (lambda y: f(y, x), 0 * X[:3])
    s = fixed_point(*given, solver=tight, batch_dims=batch_dims, max_steps=300)
    v = torch.cos(3 * s.value.detach())
    (found,) = torch.autograd.grad(s.value, x, v)
    expected = dense_gradient(f, solve_densely(f, 0 * X[:3], x.detach()), (x,), v, [x])
    assert relative_error([found], expected) < 1e-8
    with pytest.raises(NotImplementedError, match=r"cannot be recorded .* `backward='exact'`"):
        fixed_point(f, 0 * X[:3], x, solver=name, backward="unrolled")


@EACH
def test_what_it_cannot_heed_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_step'"):
        solvers.get_solver(name).iterate(f, 0 * X, (X,), max_steps=5, max_step=5)
    for option in ("histroy", "kw", "kwargs", "maxiter" if "scipy" in name else "max_iter"):
        with pytest.raises(ValueError, match=rf"Unknown option of .* '{option}'\. Options: "):
            solvers.get_solver(name, options={option: 1})
    with pytest.raises(ValueError, match="a token would see those behind it"):
        solvers.solve(f, 0 * X, X, solver=name, batch_dims=2)


@EACH
def test_with_args_each_sample_has_calls_of_its_own_and_a_watch_sees_both_ends(name: str) -> None:
    seen = []
    solver = solvers.get_solver(name, rtol=1e-8)
    s = solver.iterate(f, 0 * X, (X,), max_steps=100, watch=lambda *given: seen.append(given[2:]))
    assert s.converged.all()
    assert s.rows_evaluated < 2 * s.num_evals
    (start, _), (end, value) = seen
    assert torch.equal(start, 0 * X)
    assert torch.equal(end, s.value)
    assert torch.equal(value, f(end))


@EACH
def test_args_that_were_filled_in_place_are_not_taken_for_written(name: str) -> None:
    x = torch.empty_like(X).copy_(X)
    tight = solvers.get_solver(name, rtol=1e-8)
    assert torch.equal(*(solvers.solve(f, 0 * X, x, solver=tight).value for x in (x, X)))


def test_an_option_reaches_the_peer() -> None:
    slow, fast = (solvers.solve(f, 0 * X, solver=TorchdeqAnderson(options={"tau": tau}))
                  for tau in (0.3, 1.0))  # fmt: skip
    assert slow.num_evals > fast.num_evals


@EACH
def test_an_error_of_the_map_is_the_callers(name: str) -> None:
    def fails(y: Tensor, x: Tensor) -> Tensor:
        if bool((y != 0).any()):
            raise ZeroDivisionError("mine")  # peers may raise it too, which only ends them
        return f(y, x)

    with pytest.raises(ZeroDivisionError, match="mine"):
        solvers.solve(fails, 0 * X, X, solver=name)


@EACH
def test_in_a_shared_run_a_broken_sample_stays_alone_and_a_solved_one_moves(name: str) -> None:
    def coupled(y: Tensor) -> Tensor:
        """Sample 2 breaks as soon as it moves; sample 0 is solved until sample 1 has moved."""
        first = torch.stack((0.3 * y[0] + 0.9 * y[1], 0.5 * y[1] + 1))
        return torch.cat((first, torch.where(y[2:] == 0, 1.0, math.inf)))

    y0, tight = torch.zeros(3, 1, dtype=torch.float64), solvers.get_solver(name, rtol=1e-10)
    s = solvers.solve(coupled, y0, solver=tight, max_steps=60, throw=False)
    assert s.result.tolist() == [Result.converged, Result.converged, Result.nonfinite]
    assert torch.allclose(s.value[:, 0], torch.tensor([18 / 7, 2, 0], dtype=torch.float64))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stub(PeerSolver):
    """A peer that claims what it likes, after one step."""

    function: ClassVar[str] = "math:exp"
    end: Any = None

    def call(self, f: Any, z: Tensor) -> object:
        f.step()
        fz = f(f(z))
        if isinstance(self.end, Exception):
            raise self.end
        return f(fz * math.nan) if self.end == "nan" else z


@pytest.mark.parametrize("end", [ValueError("in vain"), ZeroDivisionError(), None, "nan"])
def test_no_claim_is_repeated(end: Any) -> None:
    """An end that was no answer is a verdict, with the best point; a mistake is raised."""
    s = solvers.solve(f, 0 * X, X, solver=Stub(end=end), max_steps=9, throw=False)
    assert (s.result == (Result.nonfinite if end == "nan" else Result.stalled)).all()
    assert torch.equal(s.value, f(0 * X))
    assert solvers.solve(lambda y, x: x + 0 * y, 0 * X, X, solver=Stub(end=end)).converged.all()
    with pytest.raises(TypeError, match="a mistake"):
        solvers.solve(f, 0 * X, X, solver=Stub(end=TypeError("a mistake")))
