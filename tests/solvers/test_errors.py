"""Every message: what is wrong, what came, what is allowed, what to do next."""

import copy
import dataclasses
import multiprocessing
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from solvers import Anderson, Broyden, FixedPointSolver, Picard, Result, SolveError
from solvers.registry import SOLVERS

Y0 = torch.zeros(10, 3)


def half(y: Tensor) -> Tensor:
    return 0.5 * y + 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: solvers.solve(half, Y0, solver="andersen"),
            ValueError,
            f"Unknown solver 'andersen'. Registered: {', '.join(solvers.names())}. Did you mean "
            "'anderson'?",
        ),
        (
            lambda: solvers.get_solver("newton"),
            ValueError,
            f"Unknown solver 'newton'. Registered: {', '.join(solvers.names())}.",
        ),
        (
            lambda: solvers.get_solver("anderson", histroy=3),
            ValueError,
            "Unknown option of 'anderson', 'histroy'. Options: rtol, atol, history, damping, "
            "ridge, min_steps. Did you mean 'history'?",
        ),
        (lambda: solvers.solve(half, Y0, solver=3), TypeError, "Expected a solver name"),  # type: ignore[arg-type]
        (lambda: solvers.solve(half, Y0, solver=Picard), TypeError, "Call the class: `Picard()`"),  # type: ignore[arg-type]
        (lambda: solvers.get_solver("picard", history=5), ValueError, "Options: rtol, atol, damp"),
        (lambda: Picard(damping=1.0), ValueError, "`damping` must lie in [0, 1), got 1.0."),
        (lambda: Picard(rtol=-1.0), ValueError, "`rtol` must be finite and at least 0, got -1.0."),
        (lambda: Anderson(atol=float("nan")), ValueError, "`atol` must be finite"),
        (lambda: Anderson(min_steps=-1), ValueError, "`min_steps` must be an integer of at least"),
        (lambda: Broyden(rtol=float("inf")), ValueError, "`rtol` must be finite"),
        (lambda: Picard(damping=-0.1), ValueError, "`damping` must lie in [0, 1), got -0.1."),
        (lambda: Anderson(damping=float("nan")), ValueError, "`damping` must lie in [0, 1), got"),
        (lambda: Anderson(history=True), ValueError, "`history` must be an integer"),
        (lambda: Broyden(history="5"), ValueError, "got '5'"),  # type: ignore[arg-type]
        (
            lambda: Anderson(ridge=float("nan")),
            ValueError,
            "`ridge` must be finite and",
        ),
        (lambda: Anderson(history=0), ValueError, "`history` must be an integer of at least 1"),
        (
            lambda: Anderson(ridge=-1.0),
            ValueError,
            "at least 0, got -1.0.",
        ),
        (lambda: Broyden(history=2.5), ValueError, "got 2.5"),  # type: ignore[arg-type]
        (lambda: solvers.solve(half, Y0, max_steps=-1), ValueError, "`max_steps` must be"),
        (lambda: solvers.solve(half, Y0, max_steps=2.0), ValueError, "got 2.0"),  # type: ignore[arg-type]
        (lambda: solvers.solve(half, Y0, batch_dims=-1), ValueError, "`batch_dims` must be"),
        (lambda: solvers.solve(half, torch.tensor(1.0)), ValueError, "Pass `batch_dims=0`"),
        (lambda: solvers.solve(half, 1.0), TypeError, "tensors only: got a float"),
        (lambda: solvers.solve(half, Y0.bool()), TypeError, "got torch.bool. Call `.float()`"),
        (lambda: solvers.solve(half, Y0, batch_dims=3), ValueError, "Pass `batch_dims=0`"),
        (lambda: solvers.solve(half, Y0.long()), TypeError, "must be floating point"),
        (lambda: solvers.solve(None, Y0), TypeError, "`f` must be a function of the state"),  # type: ignore[arg-type]
        (lambda: solvers.root("f", Y0), TypeError, "`g` must be a function of the state"),  # type: ignore[arg-type]
        (
            lambda: solvers.solve(half, Y0, independent="no"),  # type: ignore[arg-type]
            ValueError,
            "`independent` must be True or False, got 'no'.",
        ),
        (lambda: solvers.solve(half, Y0, compact="no"), ValueError, "`compact` must be True or"),  # type: ignore[arg-type]
        (lambda: solvers.solve(half, Y0, has_aux=1), ValueError, "`has_aux` must be True or"),  # type: ignore[arg-type]
        (lambda: solvers.solve(half, Y0.to(torch.float8_e5m2)), TypeError, "16 bits or more"),
        (lambda: solvers.solve(half, Y0.to_sparse()), TypeError, "`y0` must be dense"),
        (lambda: solvers.solve(half, Y0.to("meta")), TypeError, "hold values: got torch.float32"),
        (lambda: solvers.solve(half, {}), TypeError, "`y0` holds no tensor"),
        (lambda: solvers.solve(half, {"a": 1.0}), TypeError, "tensors only: got a float"),
        (
            lambda: solvers.solve(half, (Y0, torch.zeros(4, 3))),
            ValueError,
            "must share their batch dims: got (4,) and (10,)",
        ),
        (
            lambda: solvers.solve(lambda y: y[:, :2], Y0),
            ValueError,
            "`f` must return its input's shape: got (10, 2) from y of shape (10, 3).",
        ),
        (lambda: solvers.solve(lambda y: y.double(), Y0), TypeError, "got torch.float64 from y"),
        (lambda: solvers.solve(lambda y: (y, y), Y0), TypeError, "the structure of its input"),
        (lambda: solvers.solve(lambda y: 1.0, Y0), TypeError, "`f` must return tensors"),
        (lambda: solvers.solve(lambda y: None, Y0), TypeError, "got None. Is a `return` missing"),
        (
            lambda: solvers.solve(lambda y: None, {"a": Y0}),
            TypeError,
            "the structure of its input: got None, expected {'a': tensor}",
        ),
        (lambda: solvers.solve(lambda y: y.long(), Y0), TypeError, "float32. Cast inside `f`."),
        (lambda: solvers.solve(lambda y: y.to_sparse(), Y0), TypeError, "Call `.to_dense()` on it"),
        (
            lambda: solvers.solve(half, {"a": Y0, "b": None}),
            TypeError,
            "tensors only: got None. Convert numbers by `torch.as_tensor`",
        ),
        (
            lambda: solvers.solve(lambda y: {"b": y["a"]}, {"a": Y0}),
            TypeError,
            "the structure of its input",
        ),
        (
            lambda: solvers.solve(lambda y, w: y * w, Y0, torch.tensor(0.5)),
            ValueError,
            "got shape () for a batch of 10. Let `f` close over",
        ),
        (
            lambda: solvers.solve(lambda y, w: y @ w, Y0, torch.eye(3)),
            ValueError,
            "`args` are per-sample tensors: got shape (3, 3) for a batch of 10.",
        ),
    ],
)
def test_message(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_failure_carries_the_solution_and_advice() -> None:
    x = torch.ones(5, 3)
    with pytest.raises(SolveError) as caught:
        solvers.solve(lambda y, x: x - y, torch.rand(5, 3), x, solver="picard", max_steps=7)
    assert re.fullmatch(
        r"5 of 5 samples did not converge in 7 steps \(5 max_steps\), worst residual "
        r"\d\.\de[+-]\d\d\. The step budget ran out\. Raise `max_steps`, loosen `rtol`, .*\.",
        str(caught.value),
    )
    assert caught.value.solution.num_evals == 8
    assert caught.value.solution.value.shape == (5, 3)
    assert not hasattr(caught.value, "__notes__")  # that samples may be coupled is not said


def failing(slope: float) -> None:
    torch.set_num_threads(1)
    solvers.solve(lambda y: slope * y + 1, torch.zeros(2, 1), solver="picard")


def raised() -> SolveError:
    with pytest.raises(SolveError) as caught:
        failing(3.0)
    caught.value.add_note("in layer 3")
    return caught.value


def test_failure_can_be_copied_and_pickled() -> None:
    error = raised()
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is SolveError
        assert str(other) == str(error)
        assert other.__notes__ == [*error.__notes__[:-1], "in layer 3"]
        for field in dataclasses.fields(error.solution):
            a, b = (getattr(e.solution, field.name) for e in (other, error))
            assert torch.equal(a, b) if isinstance(b, Tensor) else a == b


def test_failure_with_a_graph_is_copied_without_it() -> None:
    w = torch.tensor(3.0, requires_grad=True)
    solution = Picard().iterate(lambda y: {"a": w * y["a"] + 1}, {"a": Y0}, max_steps=3)
    solution = dataclasses.replace(solution, adjoints=[solution])
    assert solution.value["a"].requires_grad
    error = SolveError(solution)
    for other in (ForkingPickler.loads(ForkingPickler.dumps(error)), copy.deepcopy(error)):
        for found in (other.solution, other.solution.adjoints[0]):
            assert torch.equal(found.value["a"], solution.value["a"])
            assert not found.value["a"].requires_grad
            assert not found.residual.requires_grad
    assert error.solution is solution


def test_failure_can_be_raised_in_a_worker_process() -> None:
    """An error that cannot be unpickled breaks an executor, and `Pool.map` waits for ever."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        with pytest.raises(SolveError) as caught:
            executor.submit(failing, 3.0).result(timeout=120)
        assert not caught.value.solution.converged.any()
    with context.Pool(1) as pool, pytest.raises(SolveError, match="2 of 2 samples"):
        pool.map_async(failing, [0.5, 3.0]).get(timeout=120)


def test_only_the_failed_samples_are_counted() -> None:
    rate = torch.tensor([[0.1], [1.0], [0.1], [float("nan")], [1.0]])
    with pytest.raises(SolveError) as caught:
        solvers.solve(
            lambda y, rate: rate * y + 1, torch.zeros(5, 1), rate, solver="picard", max_steps=9
        )
    said = str(caught.value)
    assert said.startswith("3 of 5 samples did not converge in 9 steps (2 max_steps, 1 nonfinite)")
    assert Result.max_steps.message in said
    assert Result.nonfinite.message in said
    assert caught.value.solution.converged.tolist() == [True, False, True, False, False]
    codes = [0, Result.max_steps, 0, Result.nonfinite, Result.max_steps]
    assert caught.value.solution.result.tolist() == codes


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_start_that_is_not_finite_is_reported_as_nonfinite(bad: float) -> None:
    y0 = Y0.clone()
    y0[4, 1] = bad
    with pytest.raises(SolveError, match=r"1 of 10 samples .* Check `y0`, `args` and `f`"):
        solvers.solve(half, y0)


@pytest.mark.parametrize(
    ("f", "result"),
    [
        (lambda y: y + 1, Result.max_steps),
        (lambda y: 3 * y + 1, Result.diverged),
        (lambda y: y / 0, Result.nonfinite),
        (half, Result.converged),
    ],
)
def test_each_verdict_can_be_reached(f: Callable[[Tensor], Tensor], result: Result) -> None:
    y0 = torch.ones(2, 3, dtype=torch.float64)
    s = solvers.solve(f, y0, solver="picard", throw=False)
    assert s.result.tolist() == [result, result]
    lost = dataclasses.replace(s, residual=torch.full_like(s.residual, torch.inf))
    assert ("worst residual inf" in lost.describe()) == (result != Result.converged)
    assert s.converged.tolist() == [result == Result.converged] * 2


def test_noise_above_the_tolerance_is_called_stalled() -> None:
    noise = iter(torch.randn(500, 4, 8, generator=torch.Generator().manual_seed(0)))

    def f(y: Tensor) -> Tensor:
        return 0.5 * y + 1 + 1e-3 * next(noise)

    with pytest.raises(SolveError, match="wider dtype") as caught:
        solvers.solve(f, torch.zeros(4, 8), solver="picard", max_steps=400)
    assert (caught.value.solution.result == Result.stalled).all()


@pytest.mark.parametrize(
    ("option", "value"),
    [(option, value) for option in ("rtol", "atol", "damping") for value in ("1e-3", None)]
    + [("ridge", "1e-3")],
)
def test_an_option_of_the_wrong_type_is_named(option: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"`{option}` must") as caught:
        solvers.get_solver("anderson", **{option: value})
    assert repr(value) in str(caught.value)


def test_an_infinite_ridge_is_refused() -> None:
    with pytest.raises(ValueError, match="`ridge` must be"):
        Anderson(ridge=float("inf"))


def test_closed_over_samples_under_compaction_are_explained() -> None:
    x = torch.linspace(0, 1, 10)[:, None].expand(10, 3)
    rate = torch.linspace(0.1, 0.9, 10)[:, None]

    def f(y: Tensor, rate: Tensor) -> Tensor:
        return rate * y + x

    with pytest.raises(RuntimeError) as caught:
        solvers.solve(f, Y0, rate, solver="picard", max_steps=500)
    assert "must come in `args`" in "".join(caught.value.__notes__)
    assert solvers.solve(f, Y0, rate, solver="picard", max_steps=500, compact=False).converged.all()


def test_a_map_that_autograd_cannot_record_is_given_another_solver() -> None:
    with pytest.raises(RuntimeError, match="requires grad") as caught:
        solvers.solve(lambda y: torch.from_numpy(0.5 * y.numpy()), Y0 + 1, solver="newton_krylov")
    assert "a solver that does without, such as 'anderson'" in "".join(caught.value.__notes__)


def test_error_in_f_is_not_swallowed() -> None:
    def f(y: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        solvers.solve(f, Y0)


def test_two_registrations_of_one_name() -> None:
    with pytest.raises(
        ValueError, match=r"'picard' is taken by solvers\.methods\.picard\.Picard: choose"
    ):
        solvers.register("picard")(Anderson)


def test_incomplete_solver_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Half(FixedPointSolver):
        def init(self, y: Tensor) -> None:
            """Remember nothing."""

    with pytest.raises(TypeError, match="Half must define step"):
        solvers.register("half")(Half)
    with pytest.raises(TypeError, match="must derive from FixedPointSolver"):
        solvers.register("dict")(dict)  # type: ignore[type-var]
    assert "half" not in SOLVERS.entries


def test_a_registered_solver_is_used_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SOLVERS, "entries", dict(SOLVERS.entries))

    @solvers.register("plain")
    @dataclass(frozen=True, kw_only=True)
    class Plain(FixedPointSolver):
        def init(self, y: Tensor) -> None:
            """Remember nothing."""

        def step(self, y: Tensor, fy: Tensor, carry: None) -> tuple[Tensor, None]:
            return fy, None

    assert "plain" in solvers.names()
    assert solvers.solve(half, Y0, solver="plain").converged.all()


@pytest.mark.parametrize(
    ("result", "advice"),
    [
        (Result.converged, "within tolerance"),
        (Result.max_steps, "Raise `max_steps`, loosen `rtol`, or measure the spectral radius"),
        (Result.diverged, "Damp the map (`damping`), start nearer"),
        (Result.nonfinite, "Check `y0`, `args` and `f`"),
        (Result.stalled, "loosen `rtol`, or compute `f` in a wider dtype"),
        (Result.stalled, "or there is no fixed point: start elsewhere, or use another solver"),
    ],
)
def test_result_messages(result: Result, advice: str) -> None:
    assert advice in result.message
    assert result.message.endswith(".")


def test_every_result_has_a_message() -> None:
    assert [result.name for result in Result] == [
        "converged", "max_steps", "diverged", "nonfinite", "stalled",
    ]  # fmt: skip
    assert all(result.message for result in Result)


@pytest.mark.parametrize(
    ("keyword", "advice"),
    [
        ("rtol", ", rtol=3)"),
        ("tol", ", rtol=3)"),
        ("histroy", ", history=3)"),
        ("max_iter", "Did you mean 'max_steps'?"),
        ("unheard", "It is no option here."),
    ],
)
def test_the_error_for_an_unknown_keyword_names_the_owner_of_the_option(
    keyword: str, advice: str
) -> None:
    for call in (solvers.solve, solvers.root):
        with pytest.raises(TypeError, match=re.escape(advice)):
            call(half, Y0, **{keyword: 3})


def test_describe_speaks_of_one_sample_in_the_singular() -> None:
    for count, words in ((1, "The sample converged in "), (2, "All 2 samples converged, the ")):
        s = solvers.solve(lambda y: 0.5 * y + 1, torch.zeros(count, 1), solver="picard")
        assert s.describe().startswith(words)


def test_an_extrapolation_that_leaves_the_domain_is_named_with_solvers_that_stay() -> None:
    def f(y: Tensor) -> Tensor:
        return torch.log(y) + 2

    with pytest.raises(SolveError, match="left the domain of `f`: try `solver='robust'`"):
        solvers.solve(f, torch.tensor([[0.5]]), solver="anderson")
    for solver in ("robust", "picard", "squarem", "newton_krylov"):
        assert solvers.solve(f, torch.tensor([[0.5]]), solver=solver).converged.all()
