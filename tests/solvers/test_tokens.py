"""Tokens of a row that stop at different steps; `solvers.testing.tokens` has the rest."""

import pytest
import torch
from torch import Tensor

import solvers
from solvers import Result


def test_a_given_up_token_reports_the_joint_residual() -> None:
    """The first token converges slowly; the second depends on it, and runs away."""
    x = torch.ones(1, 2, 1, dtype=torch.float64)

    def g(y: Tensor, x: Tensor) -> Tensor:
        return torch.stack((0.97 * y[:, 0] + x[:, 0], 3 * y[:, 1] + y[:, 0]), 1)

    s = solvers.solve(
        g, torch.zeros_like(x), x, solver="picard", max_steps=60, batch_dims=2, throw=False
    )
    assert s.result.tolist() == [[Result.max_steps, Result.diverged]]
    assert torch.allclose(s.residual, (g(s.value, x) - s.value).abs()[..., 0], rtol=1e-9)


@pytest.mark.parametrize(
    "compact",
    [
        True,
        False,
    ],
)
def test_rows_that_left_the_batch_report_their_joint_residual(compact: bool) -> None:
    """In row 0 a token runs away before the one that it depends on has converged."""
    rate = torch.tensor([0.9, 0.995, 0.995, 0.5], dtype=torch.float64)[:, None]
    x = torch.ones(4, 2, 1, dtype=torch.float64)
    growth = torch.tensor([3.0, 0.5, 0.5, 0.5], dtype=torch.float64)[:, None]

    def g(y: Tensor, x: Tensor, rate: Tensor, growth: Tensor) -> Tensor:
        return torch.stack((rate * y[:, 0] + x[:, 0], growth * y[:, 1] + y[:, 0]), 1)

    s = solvers.solve(
        g, torch.zeros_like(x), x, rate, growth, solver="picard", max_steps=2500, batch_dims=2,
        throw=False, compact=compact,
    )  # fmt: skip
    assert s.result[0].tolist() == [Result.converged, Result.diverged]
    true = (g(s.value, x, rate, growth) - s.value).abs()[..., 0]
    assert torch.allclose(s.residual, true, rtol=1e-9, atol=1e-12)


def test_a_stalled_token_does_not_wait_for_later_ones() -> None:
    """Otherwise its number of steps, and so its value, would depend on later tokens."""

    def f(y: Tensor, rate: Tensor) -> Tensor:
        rough = torch.cat((1e-3 * torch.sin(1e6 * y[:, :1]), torch.zeros_like(y[:, 1:])), 1)
        return 1 + rate * (y - 1) + rough

    values = []
    for behind in (0.1, 0.999):
        rate = torch.tensor([[[0.5], [behind]]], dtype=torch.float64)
        y0 = torch.zeros(1, 2, 1, dtype=torch.float64)
        solver = solvers.Picard(rtol=1e-9)
        s = solvers.solve(f, y0, rate, solver=solver, max_steps=300, batch_dims=2, throw=False)
        assert s.result[0, 0] == solvers.Result.stalled
        values.append(s.value[0, 0])
    assert torch.equal(*values)
