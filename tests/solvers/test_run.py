"""A solve that is stepped from outside: the same as `solve`, and what it refuses."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from solvers import Result, Run, Solution
from solvers.testing.problems import PROBLEMS, Problem, leaves

STEPPED = [name for name in solvers.names() if not solvers.get_solver(name).whole]
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
RATE = torch.linspace(0.1, 0.95, 6, dtype=torch.float64)[:, None]


def f(y: Tensor, rate: Tensor, x: Tensor) -> Tensor:
    return rate * torch.sin(y.roll(1, -1)) + x


def started(**options: Any) -> Run:
    return Run(f, torch.zeros_like(X), RATE, X, **options)


def told(run: Run, f: Any, steps: int = 10**6) -> Solution:
    """Ask and tell, up to `steps` times."""
    while run.point is not None and steps > 0:
        run.tell(f(run.point, *run.args))
        steps -= 1
    return run.solution()


def assert_same(a: Solution, b: Solution) -> None:
    for left, right in zip(leaves(a.value), leaves(b.value), strict=True):
        assert torch.equal(left, right)
    for name in ("residual", "result", "num_steps"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.rows_evaluated == b.rows_evaluated
    assert a.num_evals == b.num_evals


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("p", PROBLEMS[:4], ids=lambda p: p.name)
def test_a_run_gives_the_solution_of_solve(name: str, p: Problem) -> None:
    options: dict[str, Any] = {"solver": name, "max_steps": 30}
    s = solvers.solve(p.f, p.y0, *p.args, throw=False, **options)
    assert_same(told(Run(p.f, p.y0, *p.args, **options), p.f), s)


@pytest.mark.parametrize("name", [name for name in STEPPED if name != "newton_krylov"])
@pytest.mark.parametrize("case", ["args", "coupled", "tokens", "one state", "a tree"])
def test_values_may_be_told_without_a_map(name: str, case: str) -> None:
    options: dict[str, Any] = {"solver": solvers.get_solver(name, rtol=1e-3), "max_steps": 40}
    given: tuple[Any, ...] = (torch.zeros_like(X), RATE, X)
    mapped: Any = f
    if case == "coupled":
        given, mapped = given[:1], lambda y: 0.5 * torch.sin(y.roll(1, 0)) + X
    elif case == "tokens":
        options |= {"batch_dims": 2, "compact": False}
        given = tuple(value.view(2, 3, -1) for value in given)
    elif case == "one state":
        options["batch_dims"] = 0
    elif case == "a tree":
        given = ({"a": given[0].float(), "b": given[0]}, RATE, X)
        mapped = lambda y, rate, x: {  # noqa: E731
            "a": f(y["b"], rate, x).float(), "b": f(y["a"].double(), rate, x)
        }  # fmt: skip
    s = solvers.solve(mapped, *given, throw=False, **options)
    assert_same(told(Run(None, *given, **options), mapped), s)


def test_a_solution_before_the_end_is_a_snapshot() -> None:
    run = started(solver="anderson")
    begun = run.solution()
    assert torch.equal(begun.value, torch.zeros_like(X))
    assert (begun.result == Result.max_steps).all()
    on_the_way = told(run, f, steps=6)
    kept = {field.name: getattr(on_the_way, field.name) for field in dataclasses.fields(Solution)}
    kept = {name: part.clone() for name, part in kept.items() if isinstance(part, Tensor)}
    end = told(run, f)
    assert end.converged.all()
    assert on_the_way.num_evals == 6
    assert on_the_way.num_steps.max() == 6
    assert end.residual.max() < on_the_way.residual.max()
    for name, part in kept.items():
        assert torch.equal(getattr(on_the_way, name), part), name


def test_samples_are_reported_once_as_they_stop() -> None:
    run, expected = started(solver="picard"), solvers.solve(f, torch.zeros_like(X), RATE, X)
    expected = solvers.solve(f, torch.zeros_like(X), RATE, X, solver="picard")
    order: list[int] = []
    while run.point is not None:
        run.tell(f(run.point, *run.args))
        rows, s = run.newly_stopped()
        assert s.result.tolist() == [Result.converged] * len(rows)
        assert torch.equal(s.value, expected.value[rows])
        assert torch.equal(s.num_steps, expected.num_steps[rows])
        order += rows.tolist()
    assert order == sorted(range(6), key=lambda row: int(expected.num_steps[row]))
    assert len(run.newly_stopped()[0]) == 0


def test_coupled_samples_are_reported_at_the_end() -> None:
    run = Run(None, torch.zeros_like(X), solver="picard")
    counts = []
    while run.point is not None:
        run.tell(0.3 * run.point.roll(1, 0) + X)
        counts.append(len(run.newly_stopped()[0]))
    assert counts == [0] * (len(counts) - 1) + [6]


def test_samples_can_be_told_to_stop() -> None:
    run = started(solver="picard")
    told(run, f, steps=3)
    late = torch.tensor([False, True, False, False, True, False])
    before = run.solution()
    run.stop(late, Result.max_steps)
    s = told(run, f)
    assert s.result[late].tolist() == [Result.max_steps] * 2
    assert s.num_steps[late].tolist() == [3, 3]
    assert torch.equal(s.value[late], before.value[late])
    assert s.converged[~late].all()
    alone = solvers.solve(f, torch.zeros_like(X), RATE, X, solver="picard")
    assert torch.equal(s.value[~late], alone.value[~late])
    again = started()
    again.stop(torch.ones(6, dtype=torch.bool), Result.stalled)
    assert again.point is None
    assert again.solution().result.tolist() == [Result.stalled] * 6
    assert again.solution().num_evals == 0


def test_nothing_is_recorded() -> None:
    x = X.clone().requires_grad_()
    run = Run(f, torch.zeros_like(X).requires_grad_(), RATE, x)
    s = told(run, f)
    assert not s.value.requires_grad
    assert not s.residual.requires_grad
    seen = []
    solvers.solve(lambda y, x: seen.append(x.requires_grad) or 0.5 * y + x, 0 * X, x)
    assert not any(seen)


def test_a_nan_value_ends_only_its_own_sample() -> None:
    run = started()
    value = f(run.point, *run.args)
    value[2] = torch.nan
    run.tell(value)
    s = told(run, f)
    assert s.result.tolist() == [0, 0, Result.nonfinite, 0, 0, 0]
    assert torch.equal(s.value[2], torch.zeros(8, dtype=torch.float64))


def test_misuse_is_refused() -> None:
    run = started(max_steps=0)
    with pytest.raises(ValueError, match=r"`f` must return its input's shape: got \(6, 1\)"):
        run.tell(X[:, :1])
    with pytest.raises(TypeError, match="`f` must return its input's dtype"):
        run.tell(X.float())
    with pytest.raises(ValueError, match="wrote into its input"):
        run.tell(run.point.add_(1))
    run = started(max_steps=0)
    run.tell(f(run.point, *run.args))
    with pytest.raises(RuntimeError, match=r"has ended: `point` is None. Call `solution\(\)`"):
        run.tell(X)
    run = started()
    with pytest.raises(ValueError, match=r"bool mask of shape \(6,\): got torch.int64"):
        run.stop(torch.tensor([1]), Result.max_steps)
    with pytest.raises(ValueError, match="converges by its residual"):
        run.stop(torch.ones(6, dtype=torch.bool), Result.converged)


@pytest.mark.parametrize("name", ["robust", *(name for name in solvers.names() if "." in name)])
def test_whole_solves_cannot_be_stepped(name: str) -> None:
    with pytest.raises(ValueError, match=r"makes whole solves, not steps of one.* Call `solve`"):
        started(solver=name)
    solver = solvers.get_solver(name)
    for call in (lambda: solver.init(X), lambda: solver.step(X, X, None)):
        with pytest.raises(NotImplementedError, match="runs as a whole: call `iterate`"):
            call()


def test_a_solver_that_calls_the_map_needs_it() -> None:
    with pytest.raises(ValueError, match="NewtonKrylov calls the map within its steps"):
        Run(None, X, solver="newton_krylov")
    with pytest.raises(ValueError, match="Unknown solver 'andersen'"):
        started(solver="andersen")
    with pytest.raises(ValueError, match="no map to call"):
        Run(None, X).finish()
