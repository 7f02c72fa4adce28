"""Options are keywords, of solvers and of backward modes, and a wrong call says so."""
# pyright: reportCallIssue=false

import copy
import dataclasses
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import implicit
import solvers
from implicit.registry import MODES
from solvers.registry import LINEAR, SOLVERS

OPTIONS = "Options: rtol, atol, history, damping, ridge, min_steps."


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: implicit.Exact("gmres"), "such as `Exact(solver='gmres')`. Options: solver, max"),
        (lambda: implicit.Exact(solvers.Picard()), "such as `Exact(solver=Picard(rtol=1e-05"),
        (lambda: implicit.Neumann(5), "by keyword, such as `Neumann(terms=5)`. Options: terms, cl"),
        (lambda: implicit.JacobianFree(5), "`JacobianFree` takes no arguments: got 5."),
        (lambda: solvers.Anderson(1e-6), f"such as `Anderson(rtol=1e-06)`. {OPTIONS}"),
        (lambda: solvers.Anderson(8), f"such as `Anderson(history=8)`. {OPTIONS}"),
        (lambda: solvers.Anderson("x"), f"such as `Anderson(rtol='x')`. {OPTIONS}"),
        (
            lambda: solvers.Anderson(tol=1),
            f"`Anderson` has no option 'tol'. {OPTIONS} Did you mean 'rtol'?",
        ),
        (lambda: implicit.JacobianFree(x=1), "`JacobianFree` has no option 'x'. It has no options"),
    ],
)
def test_the_error_names_the_keyword(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        call()


@dataclasses.dataclass(frozen=True)
class Positional(solvers.FixedPointSolver):
    """A solver of someone else, whose option may come by position."""

    size: float = 0.5

    def init(self, y: Tensor) -> None:
        """Nothing."""

    def step(self, y: Tensor, fy: Tensor, carry: None) -> tuple[Tensor, None]:
        """Part of the way."""
        return y + self.size * (fy - y), None


class OfItsOwn(Positional):
    def __init__(self, first: int, *, second: int = 1):
        super().__init__(first / second)


def test_classes_of_others_keep_their_calls_and_the_errors_of_python() -> None:
    assert Positional(0.3).size == 0.3
    assert OfItsOwn(1, second=2).size == 0.5
    for call, message in (
        (lambda: Positional(1, 2), "takes from 1 to 2 positional arguments but 3 were given"),
        (lambda: OfItsOwn(), "missing 1 required positional argument: 'first'"),  # type: ignore[call-arg]
        (lambda: OfItsOwn(1, third=2), "unexpected keyword argument 'third'"),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError, match=message):
            call()


@pytest.mark.parametrize("registry", [SOLVERS, LINEAR, MODES], ids=lambda r: r.kind)
def test_all_else_is_as_of_a_plain_dataclass(registry: Any) -> None:
    for cls in registry.classes().values():
        made = cls()
        assert copy.copy(made) == copy.deepcopy(made) == dataclasses.replace(made) == made
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert pickle.loads(pickle.dumps(made, protocol)) == made
        parameters = inspect.signature(cls).parameters
        assert list(parameters) == [field.name for field in dataclasses.fields(cls) if field.init]


def shifted(y: Tensor, x: Tensor) -> Tensor:
    return 0.5 * y + x


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
def test_options_may_be_built_within_a_graph() -> None:
    @torch.compile(backend="eager", fullgraph=True)
    def solved(x: Tensor) -> Tensor:
        solver = solvers.Anderson(history=3)
        backward = implicit.Exact(solver="gmres")
        y0 = torch.zeros_like(x)
        return implicit.fixed_point(shifted, y0, x, solver=solver, backward=backward).value

    x = torch.ones(2, 3, requires_grad=True)
    y = solved(x)
    y.sum().backward()
    torch.testing.assert_close(y, torch.full_like(x, 2.0))
    torch.testing.assert_close(x.grad, torch.full_like(x, 2.0))
