"""A least number of steps before a sample may stop: `Anderson(min_steps=...)`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from solvers import Anderson, Result, Solution
from solvers import loop as loops
from solvers.deferred import DeferredStatus
from solvers.graph import solve_in_graph

RATES = torch.tensor([[0.0], [0.01], [0.3], [0.9]], dtype=torch.float64)
TARGET = torch.linspace(1.0, 2.0, 3, dtype=torch.float64).expand(4, 3)
START = TARGET + torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64)


def toward(y: Tensor, rate: Tensor, target: Tensor) -> Tensor:
    """To the target, by another rate for each sample and a part that is not linear."""
    return target + rate * (y - target) + 0.05 * rate * (y - target) ** 2


def eager(solver: Anderson, **options: Any) -> Solution:
    return solvers.solve(toward, START, RATES, TARGET, solver=solver, throw=False, **options)


def deferred(solver: Anderson, **options: Any) -> Solution:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "SampleStatus", DeferredStatus)
        return eager(solver, **options)


def graph(solver: Anderson, **options: Any) -> Solution:
    return solve_in_graph(toward, START, (RATES, TARGET), solver=solver, **options)


WAYS: list[Callable[..., Solution]] = [eager, deferred, graph]


@pytest.mark.parametrize("solve", WAYS)
@pytest.mark.parametrize("least", [0, 1, 2, 3, 6, 11])
def test_every_sample_makes_so_many_steps(solve: Callable[..., Solution], least: int) -> None:
    free = solve(Anderson(rtol=1e-3), max_steps=40)
    held = solve(Anderson(rtol=1e-3, min_steps=least), max_steps=40)
    assert held.converged.all()
    # The first sample's residual is 0 after a step.
    assert held.num_steps[0] == free.num_steps[0] == 1
    enough = held.num_steps == free.num_steps.clamp(min=least)
    assert (enough | (held.residual == 0)).all()
    assert least > 6 or enough[1:].all()
    assert (held.residual <= free.residual).all()


@pytest.mark.parametrize("solve", WAYS)
@pytest.mark.parametrize("budget", [0, 1, 3, 5])
def test_no_more_steps_are_asked_for_than_there_are(
    solve: Callable[..., Solution], budget: int
) -> None:
    """At the end of the budget a sample within the tolerance has converged, and no other."""
    free = solve(Anderson(rtol=0.02), max_steps=budget)
    held = solve(Anderson(rtol=0.02, min_steps=6), max_steps=budget)
    assert held.result.tolist() == free.result.tolist()
    running = free.result == int(Result.max_steps)
    assert (held.num_steps[running] == budget).all()


@pytest.mark.parametrize("solve", WAYS)
def test_samples_do_not_depend_on_their_mates(solve: Callable[..., Solution]) -> None:
    whole = solve(Anderson(rtol=1e-6, min_steps=4), max_steps=40)
    alone = [
        solvers.solve(
            toward, START[i : i + 1], RATES[i : i + 1], TARGET[i : i + 1],
            solver=Anderson(rtol=1e-6, min_steps=4), max_steps=40,
        )
        for i in range(4)
    ]  # fmt: skip
    assert whole.num_steps.tolist() == [each.num_steps.item() for each in alone]
    assert torch.allclose(whole.value, torch.cat([each.value for each in alone]), atol=1e-12)


def test_a_step_is_no_shorter_for_solves_that_are_long_anyway() -> None:
    free, held = (eager(Anderson(rtol=1e-12, min_steps=n), max_steps=60) for n in (0, 2))
    assert torch.equal(free.value, held.value)
    assert torch.equal(free.num_steps, held.num_steps)


def test_tokens_have_their_own_count() -> None:
    y0 = torch.zeros(2, 3, 4, dtype=torch.float64)
    x = torch.linspace(0, 1, 24, dtype=torch.float64).view(2, 3, 4)

    def causal(y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(x + 0.1 * y.cumsum(1))

    s = solvers.solve(
        causal, y0, x, solver=Anderson(rtol=1e-2, min_steps=5), max_steps=40, batch_dims=2
    )
    assert s.converged.all()
    assert (s.num_steps >= 5).all()
