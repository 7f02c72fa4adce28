"""What every token is promised under `batch_dims=2`."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import solvers
from solvers import Result

EACH = pytest.mark.parametrize("name", solvers.names())
SEEDS = st.integers(0, 10_000)


def tight(name: str) -> solvers.FixedPointSolver:
    return solvers.get_solver(name, rtol=1e-9, atol=1e-12)


def test_a_given_up_token_reports_the_joint_residual() -> None:
    """The first token converges slowly, and drives the second, which runs away."""
    x = torch.ones(1, 2, 1, dtype=torch.float64)

    def g(y: Tensor, x: Tensor) -> Tensor:
        return torch.stack((0.97 * y[:, 0] + x[:, 0], 3 * y[:, 1] + y[:, 0]), 1)

    s = solvers.solve(
        g, torch.zeros_like(x), x, solver="picard", max_steps=60, batch_dims=2, throw=False
    )
    assert s.result.tolist() == [[Result.max_steps, Result.diverged]]
    assert torch.allclose(s.residual, (g(s.value, x) - s.value).abs()[..., 0], rtol=1e-9)


@EACH
def test_rows_without_tokens_keep_their_shape(name: str) -> None:
    y0 = torch.zeros(3, 0, 4)
    s = solvers.solve(lambda y: 0.5 * y, y0, solver=name, batch_dims=2)
    assert s.residual.shape == (3, 0)
    assert s.value.shape == y0.shape


@EACH
def test_tokens_have_verdicts_of_their_own(name: str) -> None:
    """Of a map that does not couple them: as if each were a sample."""
    if name == "scipy.krylov":
        pytest.skip("its finite differences need all tokens of a row in one vector")
    g = torch.Generator().manual_seed(4)
    rate = 0.05 + 0.55 * torch.rand(3, 4, 1, generator=g, dtype=torch.float64)
    x = torch.randn(3, 4, 4, generator=g, dtype=torch.float64)

    def f(y: Tensor, rate: Tensor, x: Tensor) -> Tensor:
        return rate * torch.tanh(y.roll(1, -1) + 0.5 * y) + x

    inputs = (torch.zeros_like(x), rate, x)
    flat = [value.flatten(0, 1) for value in inputs]
    alone = solvers.solve(f, *flat, solver=tight(name), max_steps=200, throw=False)
    tokens = solvers.solve(f, *inputs, solver=tight(name), max_steps=200, batch_dims=2, throw=False)
    assert tokens.residual.shape == tokens.result.shape == (3, 4)
    assert torch.equal(tokens.num_steps.flatten(), alone.num_steps)
    assert torch.equal(tokens.result.flatten(), alone.result)
    assert torch.allclose(tokens.value.flatten(0, 1), alone.value, atol=1e-12)


@EACH
def test_coupled_tokens_report_the_joint_residual(name: str) -> None:
    x = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def causal(y: Tensor, x: Tensor) -> Tensor:
        return 0.8 * torch.tanh(y.cumsum(1) / 3) + x

    s = solvers.solve(causal, x, x, solver=tight(name), max_steps=400, batch_dims=2, throw=False)
    true = (causal(s.value, x) - s.value).square().mean(-1).sqrt()
    assert torch.allclose(s.residual, true, atol=1e-12)


@EACH
@given(seed=SEEDS, max_steps=st.integers(0, 30))
def test_coupled_tokens_report_the_joint_residual_at_any_budget(
    name: str, seed: int, max_steps: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 5, generator=g, dtype=torch.float64).tril()
    x = torch.randn(3, 5, 2, generator=g, dtype=torch.float64)

    def causal(y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(weight @ y) + x

    for compact in (True, False):
        s = solvers.solve(
            causal, torch.zeros_like(x), x, solver=solvers.get_solver(name, rtol=1e-3),
            max_steps=max_steps, batch_dims=2, throw=False, compact=compact,
        )  # fmt: skip
        fy = causal(s.value, x)
        true = (fy - s.value).square().mean(-1).sqrt()
        assert torch.allclose(s.residual, true, atol=1e-12)
        scale = fy.square().mean(-1).sqrt()
        assert (true <= 1.001e-3 * scale + 1e-7)[s.converged].all()


@EACH
def test_a_broken_token_harms_neither_other_rows_nor_earlier_tokens(name: str) -> None:
    x = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def causal(y: Tensor, x: Tensor) -> Tensor:
        return 0.5 * torch.tanh(y.cumsum(1) / 3) + x

    broken = x.clone()
    broken[1, 2, 0] = float("nan")
    a, b = (
        solvers.solve(causal, given, given, solver=tight(name), batch_dims=2, throw=False)
        for given in (x, broken)
    )
    assert torch.allclose(b.value[::2], a.value[::2], atol=1e-12, rtol=0)
    assert torch.equal(b.num_steps[::2], a.num_steps[::2])
    assert torch.allclose(b.value[1, :2], a.value[1, :2], atol=1e-8)
    assert (b.result[1] == torch.tensor([0, 0, 3, 3, 3])).all()


@pytest.mark.parametrize(
    "compact",
    [
        True,
        False,
    ],
)
def test_rows_that_left_the_batch_report_their_joint_residual(compact: bool) -> None:
    """In row 0 a token runs away before the one that drives it has converged."""
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


def test_a_stalled_token_does_not_wait_for_those_behind_it() -> None:
    """Else how long it goes on, and so its value, would tell of later tokens."""

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
