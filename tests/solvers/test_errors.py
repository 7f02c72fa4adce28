"""Every message: what is wrong, what came, what is allowed, what to do next."""

from collections.abc import Callable
from dataclasses import dataclass
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
            "Unknown solver 'andersen'. Registered: anderson, broyden, picard. Did you mean "
            "'anderson'?",
        ),
        (
            lambda: solvers.get_solver("anderson", histroy=3),
            ValueError,
            "Unknown option of 'anderson', 'histroy'. Options: rtol, atol, history, damping, "
            "ridge. Did you mean 'history'?",
        ),
        (lambda: solvers.solve(half, Y0, solver=3), TypeError, "Expected a solver name"),  # type: ignore[arg-type]
        (lambda: Picard(damping=1.0), ValueError, "`damping` must lie in [0, 1), got 1.0."),
        (lambda: Picard(rtol=-1.0), ValueError, "`rtol` must be finite and at least 0, got -1.0."),
        (lambda: Anderson(atol=float("nan")), ValueError, "`atol` must be finite"),
        (lambda: Anderson(history=0), ValueError, "`history` must be an integer of at least 1"),
        (lambda: Anderson(ridge=-1.0), ValueError, "`ridge` must be at least 0, got -1.0."),
        (lambda: Broyden(history=2.5), ValueError, "got 2.5"),  # type: ignore[arg-type]
        (lambda: solvers.solve(half, Y0, max_steps=-1), ValueError, "`max_steps` must be"),
        (lambda: solvers.solve(half, Y0, max_steps=2.0), ValueError, "got 2.0"),  # type: ignore[arg-type]
        (lambda: solvers.solve(half, Y0, batch_dims=3), ValueError, "Pass `batch_dims=0`"),
        (lambda: solvers.solve(half, Y0.long()), TypeError, "must be floating point"),
        (lambda: solvers.solve(half, Y0 + 0j), TypeError, "view_as_real"),
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
    with pytest.raises(SolveError) as caught:
        solvers.solve(lambda y: -y + 1, torch.rand(5, 3), solver="picard", max_steps=7)
    assert str(caught.value).startswith("5 of 5 samples did not converge in 7 steps")
    assert "Raise `max_steps`" in str(caught.value)
    assert caught.value.solution.num_evals == 8


def test_closed_over_samples_under_compaction_are_explained() -> None:
    x = torch.linspace(0, 1, 10)[:, None].expand(10, 3)
    rate = torch.linspace(0.1, 0.9, 10)[:, None]

    def f(y: Tensor, rate: Tensor) -> Tensor:
        return rate * y + x

    with pytest.raises(RuntimeError) as caught:
        solvers.solve(f, Y0, rate, solver="picard", max_steps=500)
    assert "must come in `args`" in "".join(caught.value.__notes__)
    assert solvers.solve(f, Y0, rate, solver="picard", max_steps=500, compact=False).converged.all()


def test_error_in_f_is_not_swallowed() -> None:
    def f(y: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        solvers.solve(f, Y0)


def test_two_registrations_of_one_name() -> None:
    with pytest.raises(ValueError, match="'picard' is taken by Picard"):
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


def test_every_result_has_advice() -> None:
    for result in Result:
        assert result.message.endswith(".")
