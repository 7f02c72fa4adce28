"""Options and messages of the adapters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from implicit.testing.oracles import solve_densely
from solvers.contrib import (
    PeerSolver,
    ScipyAnderson,
    ScipyBroyden1,
    ScipyKrylov,
    TorchdeqAnderson,
    TorchdeqBroyden,
    TorchdeqPicard,
)

NAMES = [name for name in solvers.names() if "." in name]
EACH = pytest.mark.parametrize("name", NAMES)


def f(y: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(0.7 * y.roll(1, -1) + x)


def draw() -> tuple[Tensor, Tensor]:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.zeros_like(x), x


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TorchdeqPicard(damping=1.0), "`damping` must lie in [0, 1), got 1.0."),
        (lambda: TorchdeqAnderson(history=1), "`history` must be an integer of at least 2, got 1."),
        (lambda: TorchdeqAnderson(ridge=-1.0), "`ridge` must be finite and at least 0"),
        (lambda: TorchdeqAnderson(damping=2.0), "`damping` must lie in [0, 1)"),
        (lambda: TorchdeqBroyden(history=0), "`history` must be an integer of at least 1"),
        (lambda: ScipyAnderson(history=2.5), "`history` must be an integer"),  # type: ignore[arg-type]
        (lambda: ScipyAnderson(ridge=float("nan")), "`ridge` must be finite"),
        (lambda: ScipyBroyden1(damping=-1.0), "`damping` must lie in [0, 1)"),
        (lambda: ScipyBroyden1(rtol=-1.0), "`rtol` must be finite and at least 0"),
        (
            lambda: ScipyBroyden1(line_search="exact"),  # type: ignore[arg-type]
            "`line_search` must be 'armijo', 'wolfe' or None, got 'exact'.",
        ),
        (lambda: ScipyKrylov(method="cg"), "`method` must be 'lgmres' or 'gmres', got 'cg'."),  # type: ignore[arg-type]
        (lambda: ScipyKrylov(inner_steps=0), "`inner_steps` must be an integer of at least 1"),
        (lambda: ScipyKrylov(difference=0.0), "`difference` must be above 0, got 0."),
        (lambda: ScipyKrylov(difference="x"), "`difference` must be finite"),  # type: ignore[arg-type]
    ],
)
def test_message(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "solver",
    [
        ScipyAnderson(line_search="armijo"),
        ScipyAnderson(line_search="wolfe", history=2, ridge=0.0, damping=0.3),
        ScipyBroyden1(line_search="armijo", history=3),
        ScipyBroyden1(damping=0.5),
        ScipyKrylov(line_search="armijo"),
        ScipyKrylov(method="gmres", inner_steps=4),
        ScipyKrylov(inner_steps=2, difference=1e-5),
        TorchdeqPicard(damping=0.3),
        TorchdeqAnderson(history=2, ridge=0.0, damping=0.3),
        TorchdeqBroyden(history=20),
    ],
    ids=str,
)
def test_every_option_reaches_the_peer_and_works(solver: PeerSolver) -> None:
    pytest.importorskip("scipy" if "Scipy" in type(solver).__name__ else "torchdeq")
    y0, x = draw()
    s = solvers.solve(f, y0, x, solver=solver, max_steps=200)
    assert torch.allclose(s.value, solve_densely(f, y0, x), atol=1e-4)
    assert int(s.num_steps.max()) + 1 <= s.num_evals
