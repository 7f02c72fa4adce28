"""`Solution.describe`: how many steps the failed samples had, and why not more."""

import torch
from torch import Tensor

import solvers
from solvers import Result


def test_steps_are_those_of_the_failed_samples() -> None:
    gain = torch.tensor([[0.9], [1.0]])
    y0 = torch.full((2, 1), float("inf"))
    y0[0] = 0
    s = solvers.solve(lambda y, g: g * y + 1, y0, gain, solver="picard", max_steps=99, throw=False)
    assert s.num_steps.tolist() == [88, 0]
    assert s.describe().startswith("1 of 2 samples did not converge in 0 steps (1 nonfinite)")


def test_a_share_of_the_budget_is_explained() -> None:
    torch.manual_seed(0)

    def noisy(y: Tensor) -> Tensor:
        return 0.9 * y + 1 + 1e-2 * torch.randn_like(y)

    s = solvers.solve(noisy, torch.zeros(4, 8), solver="robust", max_steps=50, throw=False)
    assert (s.result == Result.max_steps).any()
    assert (
        "4 solvers were tried in turn, each with a share of `max_steps` of its own" in s.describe()
    )
    s = solvers.solve(noisy, torch.zeros(4, 8), solver="picard", max_steps=9, throw=False)
    assert "in turn" not in s.describe()


def test_no_step_is_no_failure_to_converge() -> None:
    s = solvers.solve(lambda y: 0.5 * y + 1, torch.zeros(4, 8), max_steps=0, throw=False)
    assert not s.converged.any()
    assert s.describe().startswith("No step was made, since `max_steps` is 0")
