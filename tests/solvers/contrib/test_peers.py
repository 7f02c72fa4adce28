"""Peers: each is the real one, judged by our rule, and its faults stay out.

Two problems each by default; the conformance suite runs on them among the slow tests.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from implicit import fixed_point
from implicit.testing.oracles import dense_gradient, relative_error, solve_densely
from solvers import Result, Solution
from solvers.contrib import (
    PeerSolver,
    ScipyAnderson,
    ScipyBroyden1,
    ScipyKrylov,
    TorchdeqAnderson,
    TorchdeqBroyden,
    TorchdeqPicard,
)
from solvers.registry import Registry
from solvers.testing.problems import Problem, distance, linear, residual, tanh

NAMES = [name for name in solvers.names() if "." in name]
EACH = pytest.mark.parametrize("name", NAMES)


def f(y: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(0.7 * y.roll(1, -1) + x)


def draw(rows: int = 4, size: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(rows, size, generator=g, dtype=torch.float64)
    return torch.zeros_like(x), x


def test_adapters_are_registered_where_their_package_is_installed() -> None:
    expected = {
        "scipy": ["scipy.anderson", "scipy.broyden1", "scipy.krylov"],
        "torchdeq": ["torchdeq.anderson", "torchdeq.broyden", "torchdeq.picard"],
    }
    assert [name for package, names in expected.items() if importlib.util.find_spec(package)
            for name in names] == NAMES  # fmt: skip


def test_a_missing_package_is_named_with_what_to_do() -> None:
    registry: Registry[solvers.FixedPointSolver] = Registry(
        "solver", solvers.FixedPointSolver, "solvers"
    )
    registry.register("plain")(solvers.Picard)
    registry.register("far.away", needs="no_such_package")(solvers.Picard)
    assert registry.names() == ["plain"]
    with pytest.raises(ImportError) as caught:
        registry.get("far.away", damping=0.5)
    assert str(caught.value) == (
        "The solver 'far.away' needs no_such_package, which is not installed. Run `pip install "
        "no_such_package`, or choose from: plain."
    )
    with pytest.raises(ValueError, match=r"'far\.away' is taken"):
        registry.register("far.away")(solvers.Anderson)


def test_peers_are_imported_when_used_and_not_before() -> None:
    code = (
        "import sys, solvers.contrib; "
        "assert not {'torchdeq', 'scipy.optimize'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def seen_by(run: Callable[[Callable[[Tensor], Tensor]], object]) -> list[Tensor]:
    """The points at which a run evaluates f, for one sample."""
    points: list[Tensor] = []

    def watched(y: Tensor) -> Tensor:
        points.append(y.detach().clone().flatten())
        return f(y, draw()[1][:1].view_as(y))

    run(watched)
    return points


def through(solver: PeerSolver) -> list[Tensor]:
    """The same through an adapter; what it divides by is about 1 for this map."""
    return seen_by(
        lambda f: solvers.solve(f, draw()[0][:1], solver=solver, max_steps=8, throw=False)
    )


@pytest.mark.parametrize("name", ["anderson", "broyden1", "krylov"])
def test_points_are_those_of_scipy(name: str) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    direct = {
        "anderson": lambda g, y: optimize.anderson(g, y, alpha=1, M=5, w0=0.01, maxiter=7,
                                                   line_search="armijo"),
        "broyden1": lambda g, y: optimize.broyden1(g, y, alpha=1, maxiter=7, line_search=None),
        "krylov": lambda g, y: optimize.newton_krylov(g, y, maxiter=3, inner_inner_m=30,
                                                      line_search=None),
    }  # fmt: skip
    adapted = {
        "anderson": ScipyAnderson(rtol=0, atol=0, history=5, ridge=1e-4, line_search="armijo"),
        "broyden1": ScipyBroyden1(rtol=0, atol=0),
        "krylov": ScipyKrylov(rtol=0, atol=0),
    }

    def run(f: Callable[[Tensor], Tensor]) -> None:
        def g(y: Any) -> Any:
            point = torch.from_numpy(y.copy())
            return (f(point) - point).numpy()

        with pytest.raises(optimize.NoConvergence):
            direct[name](g, draw()[0][0].numpy())

    expected, found = seen_by(run), through(adapted[name])
    assert len(expected) >= 8
    for a, b in zip(expected, found, strict=False):
        assert torch.allclose(a, b, atol=1e-7 if name == "krylov" else 1e-12)


@pytest.mark.parametrize("name", ["picard", "anderson", "broyden"])
def test_points_are_those_of_torchdeq(name: str) -> None:
    solver = pytest.importorskip("torchdeq.solver")
    options = {"picard": {"tau": 0.8}, "anderson": {"m": 4, "lam": 0.0, "tau": 0.9}}.get(name, {})
    adapted = {
        "picard": TorchdeqPicard(rtol=0, atol=0, damping=0.2),
        "anderson": TorchdeqAnderson(rtol=0, atol=0, history=4, damping=0.1, ridge=0.0),
        "broyden": TorchdeqBroyden(rtol=0, atol=0),
    }
    key = {"picard": "fixed_point_iter"}.get(name, name)
    direct = solver.get_solver(key)
    expected = seen_by(lambda f: direct(f, draw()[0][:1], max_iter=8, tol=0.0, **options))
    found = through(adapted[name])
    assert len(expected) >= 8
    for a, b in zip(expected, found, strict=False):
        assert torch.allclose(a, b, atol=1e-9)


@EACH
@pytest.mark.parametrize("p", [linear(0.9, normal=True), tanh()], ids=lambda p: p.name)
def test_it_solves_what_it_should(name: str, p: Problem) -> None:
    solver = solvers.get_solver(name, rtol=1e-8)
    s = solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=500)
    assert distance(s.value, p.y_star) < 1e-5


@EACH
def test_the_first_steps_count(name: str) -> None:
    """torchdeq's Anderson returns the start after 1 and 2 iterations."""
    y0, x = draw()
    start = residual(f, y0, x)
    for max_steps in (1, 2):
        s = solvers.solve(f, y0, x, solver=name, max_steps=max_steps, throw=False)
        assert (s.result == Result.max_steps).all()
        assert (s.residual < start).all()
        assert torch.allclose(s.residual, residual(f, s.value, x))


@EACH
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_units_do_not_matter(name: str, scale: float) -> None:
    """torchdeq's ridge and SciPy's differences have absolute sizes."""
    y0, x = draw()
    solver = solvers.get_solver(name, rtol=1e-9, atol=0.0)
    plain = solvers.solve(f, y0, x, solver=solver, max_steps=200)
    scaled = solvers.solve(
        lambda y, x: scale * f(y / scale, x), y0, x, solver=solver, max_steps=200
    )
    assert torch.allclose(scaled.value / scale, plain.value, atol=1e-8)
    assert abs(scaled.num_evals - plain.num_evals) <= 3


def test_acceleration_does_not_end_as_residuals_fall() -> None:
    """With its absolute ridge torchdeq's Anderson needs twice the calls that Picard does."""
    pytest.importorskip("torchdeq")
    p = linear(0.9, normal=True)
    solver = TorchdeqAnderson(rtol=1e-12, atol=0.0)
    assert solvers.solve(p.f, p.y0, *p.args, solver=solver, max_steps=60).num_evals < 50


@EACH
@pytest.mark.parametrize("batch_dims", [0, 1, 2])
@pytest.mark.parametrize("with_args", [True, False])
def test_gradient_equals_the_dense_one(name: str, batch_dims: int, with_args: bool) -> None:
    y0, x = draw(3, 4)
    y0, x = (value[None].expand(2, 3, 4).clone() for value in (y0, x))
    x = (x + torch.arange(2).view(2, 1, 1)).requires_grad_()
    tight = solvers.get_solver(name, rtol=1e-12, atol=1e-14)
    given = (f, y0, x) if with_args else (lambda y: f(y, x), y0)
    options = {"solver": tight, "batch_dims": batch_dims, "max_steps": 300}
    if batch_dims == 2:
        with pytest.raises(ValueError, match="a token would see those behind it"):
            fixed_point(*given, **options)
        return
    s = fixed_point(*given, **options)
    v = torch.cos(3 * s.value.detach())
    (found,) = torch.autograd.grad(s.value, x, v)
    y_star = solve_densely(f, y0, x.detach())
    assert relative_error([found], dense_gradient(f, y_star, (x,), v, [x])) < 1e-8
    assert s.adjoints[0].converged.all()


@EACH
def test_recording_is_refused_with_advice(name: str) -> None:
    y0, x = draw()
    x.requires_grad_()
    with pytest.raises(NotImplementedError, match=r"cannot be recorded .* `backward='exact'`"):
        fixed_point(f, y0, x, solver=name, backward="unrolled")
    with torch.enable_grad(), pytest.raises(NotImplementedError, match="cannot be recorded"):
        solvers.get_solver(name).iterate(f, y0, (x,), max_steps=5)


@EACH
def test_shine_is_refused_with_what_has_an_estimate(name: str) -> None:
    y0, x = draw()
    with pytest.raises(ValueError, match=r"Solvers that have one: .*broyden"):
        fixed_point(f, y0, x.requires_grad_(), solver=name, backward="shine")


@EACH
def test_transforms_differentiate_through_a_peer(name: str) -> None:
    """They see one operation; `f` runs in the caller's thread, where they are active."""
    y0, x = draw(2, 3)
    tight = solvers.get_solver(name, rtol=1e-12, atol=1e-14)

    def solved(x: Tensor) -> Tensor:
        return fixed_point(f, torch.zeros_like(x), x, solver=tight, max_steps=300).value

    own = fixed_point(f, y0, x.requires_grad_(), solver=solvers.Anderson(rtol=1e-13), max_steps=99)
    (expected,) = torch.autograd.grad(own.value.square().sum(), x)
    x = x.detach()
    assert torch.allclose(torch.func.grad(lambda x: solved(x).square().sum())(x), expected)
    assert torch.allclose(
        torch.func.jacfwd(lambda x: solved(x).square().sum())(x), expected, atol=1e-8
    )
    rows = torch.func.vmap(lambda x: solved(x[None])[0])(x)
    assert torch.allclose(rows, own.value, atol=1e-8)


@EACH
@pytest.mark.parametrize("with_args", [True, False])
def test_an_error_of_the_map_is_the_callers(name: str, with_args: bool) -> None:
    """Though peers may raise errors of the same class, which only end them."""
    y0, x = draw()
    calls = []

    def fails(y: Tensor, *args: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise ZeroDivisionError("mine")
        return f(y, *(args or (x,)))

    with pytest.raises(ZeroDivisionError, match="mine"):
        solvers.solve(fails, y0, *((x,) if with_args else ()), solver=name, throw=False)
    assert len(calls) == 5


@EACH
def test_autocast_holds_in_every_call(name: str) -> None:
    seen = []

    def cast(y: Tensor, x: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return f(y, x)

    y0, x = (value.float() for value in draw())
    with torch.autocast("cpu", torch.bfloat16):
        assert solvers.solve(cast, y0, x, solver=name, throw=False).value.dtype == torch.float32
    assert all(seen)


def test_finite_differences_are_calls_but_no_steps() -> None:
    pytest.importorskip("scipy")
    y0, x = draw()
    count = [0]

    def counted(y: Tensor, x: Tensor) -> Tensor:
        count[0] += 1
        return f(y, x)

    s = solvers.solve(counted, y0, x, solver="scipy.krylov", max_steps=3, throw=False)
    assert int(s.num_steps.max()) <= 3
    assert s.num_evals == count[0] > 8
    assert s.converged.any()


def test_one_krylov_space_for_all_that_f_couples() -> None:
    """Entries of one row, and without `args` all samples; a space for each would go astray."""
    pytest.importorskip("scipy")
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(5, 5, generator=g, dtype=torch.float64)
    x = torch.randn(2, 5, 3, generator=g, dtype=torch.float64)

    def coupled(y: Tensor, x: Tensor) -> Tensor:
        return mix @ y + x

    tight = ScipyKrylov(rtol=1e-9)
    rows = solvers.solve(coupled, 0 * x, x, solver=tight, max_steps=5)
    whole = solvers.solve(
        lambda y: coupled(y, x[0]), 0 * x[0], solver=tight, batch_dims=1, max_steps=5
    )
    true = torch.linalg.solve(torch.eye(5, dtype=torch.float64) - mix, x)
    assert torch.allclose(rows.value, true, atol=1e-6)
    assert torch.allclose(whole.value, true[0], atol=1e-6)
    assert rows.residual.shape == (2,)


@EACH
def test_a_sample_that_starts_solved_moves_with_those_that_drive_it(name: str) -> None:
    """One run has both; holding back the first would falsify what the peer hears."""
    weight = torch.tensor([[0.3, 0.9], [0.0, 0.5]], dtype=torch.float64)
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    tight = solvers.get_solver(name, rtol=1e-10)
    s = solvers.solve(lambda y: weight @ y + x, 0 * x, solver=tight, max_steps=60)
    assert torch.allclose(s.value, torch.tensor([[18 / 7], [2.0]], dtype=torch.float64))
    assert s.num_steps.min() > 0
    if name == "scipy.krylov":
        assert s.num_steps.tolist() == [1, 1]
        assert s.num_evals == 4


@EACH
@pytest.mark.parametrize("max_steps", [0, 40])
def test_a_broken_sample_in_a_shared_run_harms_no_other(name: str, max_steps: int) -> None:
    """Broken from the start, or as soon as it moves; `f` has no args, so one run has all."""
    y0, x = draw()
    y0[1, 2] = float("nan")

    def fragile(y: Tensor) -> Tensor:
        fy = f(y, x)
        return torch.where((torch.arange(4)[:, None] == 3) & (y != 0).any(1, True), torch.inf, fy)

    s = solvers.solve(fragile, y0, solver=name, max_steps=max_steps, throw=False)
    assert s.result[1] == Result.nonfinite
    if max_steps:
        assert s.result.tolist() == [Result.converged, 3, Result.converged, 3]
        assert torch.equal(s.value[3], y0[3])


@dataclass(frozen=True, kw_only=True)
class Stub(PeerSolver):
    """A peer that claims what it likes, after two calls of `f`."""

    end: Any = None

    def call(self, f: Callable[[Tensor], Tensor], z: Tensor, eps: float) -> object:
        fz = f(f(z))
        if isinstance(self.end, Exception):
            raise self.end
        return f(fz * float("nan")) if self.end == "nan" else z


def stubbed(end: Any, f: Callable[..., Tensor] = f) -> Solution:
    y0, x = draw()
    return solvers.solve(f, y0, x, solver=Stub(end=end), max_steps=9, throw=False)


@pytest.mark.parametrize(
    ("end", "result"),
    [
        (ValueError("Jacobian inversion yielded zero vector"), Result.stalled),
        (ZeroDivisionError(), Result.stalled),
        (None, Result.stalled),
        ("nan", Result.nonfinite),
    ],
)
def test_a_peer_that_ends_leaves_a_verdict_and_its_best_point(end: Any, result: Result) -> None:
    """No traceback, and no call of `f` after the end: one for all, and one for each sample."""
    y0, x = draw()
    s = stubbed(end)
    assert s.result.tolist() == [result] * 4
    assert s.num_steps.tolist() == [1] * 4
    assert s.num_evals == 5
    assert torch.equal(s.value, f(y0, x))
    assert torch.allclose(s.residual, residual(f, s.value, x))


def test_a_peer_that_passes_the_answer_has_converged() -> None:
    """Whatever it returns: here, the start."""
    s = stubbed(None, lambda y, x: x + 0 * y)
    assert s.converged.all()
    assert torch.equal(s.value, draw()[1])


def test_mistakes_in_an_adapter_are_raised() -> None:
    with pytest.raises(TypeError, match="a mistake"):
        stubbed(TypeError("a mistake"))
