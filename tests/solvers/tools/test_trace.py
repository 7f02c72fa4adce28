"""Traces: they record the ordinary solve, and their rates are those of the maps."""

import dataclasses
import importlib
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from parameters import PEERS_WHEN_SLOW
from torch import Tensor

import solvers
from solvers.testing.problems import BATCH, PROBLEMS, Problem, leaves, linear, rms, rotation
from solvers.tools.trace import Trace, contraction_rate, trace

SOLVERS = pytest.mark.parametrize("name", PEERS_WHEN_SLOW)
OURS = pytest.mark.parametrize("name", ["anderson", "broyden", "picard"])


def dense(p: Problem) -> Tensor:
    return torch.linalg.eigvals(p.jacobian).abs().amax(-1)


def stepwise(rate: Tensor, start: Tensor) -> Trace:
    """A map whose samples shrink by rates of their own."""
    return trace(
        lambda y, rate: rate * y, start, rate, solver=solvers.Picard(rtol=0, atol=1e-6),
        max_steps=300,
    )  # fmt: skip


@OURS
@pytest.mark.parametrize("p", PROBLEMS, ids=lambda p: p.name)
def test_a_trace_is_the_ordinary_solve(p: Problem, name: str) -> None:
    options = {"solver": name, "max_steps": 40}
    seen = trace(p.f, p.y0, *p.args, keep_states=True, **options)
    s = solvers.solve(p.f, p.y0, *p.args, throw=False, compact=False, **options)
    for field in dataclasses.fields(s):
        if field.name not in ("value", "adjoints", "solved_by", "aux"):
            found, true = getattr(seen.solution, field.name), getattr(s, field.name)
            assert torch.equal(torch.as_tensor(found), torch.as_tensor(true)), field.name
    pairs = zip(leaves(seen.solution.value), leaves(s.value), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert len(seen.states) == len(seen.residual) == len(seen.seconds) == s.num_evals
    assert seen.num_evals.tolist() == list(range(1, s.num_evals + 1))


@SOLVERS
def test_any_registered_solver_can_be_traced(name: str) -> None:
    p = linear(0.5, normal=False)
    y0, args = p.y0[:1], (p.args[0][:1],)
    seen = trace(p.f, y0, *args, solver=name, max_steps=100)
    assert seen.solution.converged.all()
    assert seen.residual.shape == (len(seen.seconds), 1)
    assert seen.residual[-1] <= seen.residual[0]


@pytest.mark.parametrize("p", PROBLEMS, ids=lambda p: p.name)
def test_residuals_are_those_of_the_states(p: Problem) -> None:
    seen = trace(p.f, p.y0, *p.args, max_steps=20, keep_states=True)
    for state, residual in zip(seen.states, seen.residual, strict=True):
        fy = p.f(state, *p.args)
        if isinstance(state, dict):
            true = rms({key: fy[key] - state[key] for key in state})
        else:
            true = rms(fy - state)
        assert torch.allclose(residual, true, rtol=1e-12)
        assert residual.dtype == torch.float64


def test_states_are_copies_of_what_was_evaluated() -> None:
    y0 = torch.ones(1, 1)
    seen = trace(lambda y: 0.5 * y, y0, solver="picard", keep_states=True)
    y0.zero_()
    assert [state.item() for state in seen.states[:4]] == [1, 0.5, 0.25, 0.125]
    assert trace(lambda y: 0.5 * y, torch.ones(1, 1)).states == ()


def test_seconds_are_those_of_the_solve_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances in `f` and in recording, and recording must not count."""
    now = [0.0]
    module = importlib.import_module("solvers.tools.trace")

    def tick(amount: float) -> None:
        now[0] += amount

    def clone(function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        tick(100)
        return function(y)

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    slow = SimpleNamespace(tree_map=clone, tree_leaves=module.pytree.tree_leaves)
    monkeypatch.setattr(module, "pytree", slow)

    def f(y: Tensor) -> Tensor:
        tick(1)
        return 0.5 * y

    seen = trace(f, torch.ones(1, 1), solver="picard", max_steps=4, keep_states=True)
    assert seen.seconds.tolist() == [1, 2, 3, 4, 5]
    assert seen.seconds.dtype == torch.float64


def test_active_until_the_last_move() -> None:
    rate = torch.tensor([[0.1], [0.8], [0.5]], dtype=torch.float64)
    seen = stepwise(rate, torch.ones(3, 1, dtype=torch.float64))
    assert torch.equal(seen.active.sum(0), seen.solution.num_steps + 1)
    assert seen.active[:, 1].all()
    for i in range(3):
        own = seen.residual[seen.active[:, i], i]
        assert torch.allclose(own[1:] / own[:-1], rate[i])
        assert own[-1] == seen.solution.residual[i]


def test_rates_of_samples_that_stop_early() -> None:
    rate = torch.tensor([[0.1], [0.95], [0.5]], dtype=torch.float64)
    seen = stepwise(rate, torch.ones(3, 1, dtype=torch.float64))
    assert torch.allclose(seen.contraction_rate, rate[:, 0])


def test_a_diverged_sample_keeps_its_rate_though_it_returns_to_its_start() -> None:
    rate = torch.tensor([[3.0], [0.95]], dtype=torch.float64)
    seen = stepwise(rate, torch.ones(2, 1, dtype=torch.float64))
    assert seen.solution.result.tolist() == [solvers.Result.diverged, solvers.Result.converged]
    assert torch.allclose(seen.contraction_rate, rate[:, 0])


@pytest.mark.parametrize("p", [*PROBLEMS[:6], rotation(0.9), rotation(1.2)], ids=lambda p: p.name)
@pytest.mark.parametrize("max_steps", [250, 1500], ids=["on the way", "at the noise floor"])
def test_rate_of_picard_is_the_spectral_radius(p: Problem, max_steps: int) -> None:
    solver = solvers.Picard(rtol=0, atol=0)
    seen = trace(p.f, p.y0, *p.args, solver=solver, max_steps=max_steps)
    assert seen.contraction_rate.shape == (BATCH,)
    assert torch.allclose(seen.contraction_rate, dense(p), rtol=0.05)


def geometric(rate: float, count: int) -> Tensor:
    return rate ** torch.arange(count, dtype=torch.float64)


def test_rate_ignores_the_start_and_the_noise_floor() -> None:
    """Five fast steps, then 0.9 down to 1e-8, then noise of one order of magnitude."""
    generator = torch.Generator().manual_seed(0)
    start = geometric(0.1, 5)
    tail = start[-1] * 0.9 * geometric(0.9, 90)
    noise = tail[-1] * (0.3 + torch.rand(100, generator=generator, dtype=torch.float64))
    found = contraction_rate(torch.cat((start, tail, noise)))
    assert found.item() == pytest.approx(0.9, rel=0.01)


def test_a_slow_clean_tail_is_no_noise_floor() -> None:
    """Within a factor of 3 of its minimum for a hundred steps, but each sets a record."""
    found = contraction_rate(torch.cat((geometric(0.1, 4), 1e-3 * geometric(0.99, 100))))
    assert found.item() == pytest.approx(0.99, rel=1e-6)


@pytest.mark.parametrize("rate", [0.3, 0.999, 1.0, 1.5])
def test_rates_below_at_and_above_one(rate: float) -> None:
    assert contraction_rate(geometric(rate, 12)).item() == pytest.approx(rate)


def test_oscillation_averages_out() -> None:
    wave = 1 + 0.5 * torch.sin(torch.arange(200.0).double())
    assert contraction_rate(geometric(0.95, 200) * wave).item() == pytest.approx(0.95, rel=5e-3)


def test_bad_entries_are_skipped_and_keep_their_place() -> None:
    rows = geometric(0.8, 30)
    spoiled = rows.clone()
    spoiled[[3, 20, 25]] = torch.tensor([math.nan, math.inf, math.nan], dtype=torch.float64)
    spoiled[-1] = 0
    both = contraction_rate(torch.stack((rows, spoiled), 1))
    assert torch.allclose(both, torch.full((2,), 0.8, dtype=torch.float64))


def test_too_few_residuals_give_nan_and_shapes_are_kept() -> None:
    assert contraction_rate(torch.ones(1, 2, 3)).isnan().all()
    assert contraction_rate(torch.tensor([1.0, 0.0, 0.0])).isnan()
    assert contraction_rate(torch.full((5,), math.nan)).isnan()
    assert contraction_rate(torch.ones(0, 4)).isnan().tolist() == [True] * 4
    found = contraction_rate(geometric(0.5, 6).float()[:, None, None].expand(6, 2, 3))
    assert found.shape == (2, 3)
    assert found.dtype == torch.float32
    with pytest.raises(ValueError, match="must have shape"):
        contraction_rate(torch.tensor(1.0))


def test_nan_in_one_sample_touches_no_other() -> None:
    p = linear(0.9, normal=True)
    x = p.args[0].clone()
    clean = trace(p.f, p.y0, x, max_steps=20)
    x[2] = math.nan
    seen = trace(p.f, p.y0, x, max_steps=20)
    others = [i for i in range(BATCH) if i != 2]
    count = min(len(seen.residual), len(clean.residual))
    assert torch.equal(seen.residual[:count, others], clean.residual[:count, others])
    assert seen.residual[:, 2].isnan().all()
    assert seen.contraction_rate[2].isnan()
    assert torch.equal(seen.contraction_rate[others], clean.contraction_rate[others])


def test_tokens_unbatched_states_and_empty_batches() -> None:
    y0 = torch.ones(2, 3, 4)
    tokens = trace(lambda y, x: 0.5 * y, y0, y0, batch_dims=2, solver="picard", max_steps=9)
    assert tokens.residual.shape == (10, 2, 3)
    assert torch.allclose(tokens.contraction_rate, torch.full((2, 3), 0.5))
    single = trace(lambda y: 0.5 * y, y0, batch_dims=0, solver="picard", max_steps=9)
    assert single.contraction_rate.item() == pytest.approx(0.5)
    assert single.active.shape == (10,)
    empty = trace(lambda y: 0.5 * y, y0[:0])
    assert empty.residual.shape == empty.active.shape == (0, 0)
    assert empty.contraction_rate.shape == (0,)


def test_autocast_and_low_precision_have_residuals_in_float32() -> None:
    weight = 0.5 * torch.eye(4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = trace(lambda y: y @ weight, torch.ones(2, 4), solver="picard", max_steps=5)
    low = trace(lambda y: 0.5 * y, torch.ones(2, 4).bfloat16(), solver="picard", max_steps=5)
    for seen in (mixed, low):
        assert seen.residual.dtype == torch.float32
        assert torch.allclose(seen.residual[:, 0], 0.5 * geometric(0.5, 6).float())


def test_calls_for_a_derivative_add_no_rows() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Differentiating(solvers.FixedPointSolver):
        def init(self, y: Tensor) -> None: ...

        def step(self, y: Tensor, fy: Tensor, carry: None) -> tuple[Tensor, None]:
            return fy, None

        def move(self, y: Tensor, fy: Tensor, carry: None, f: Callable) -> tuple[Tensor, None]:
            torch.func.vjp(f, y)[1](y)
            return fy, None

    calls = []

    def f(y: Tensor) -> Tensor:
        calls.append(1)
        return 0.5 * y

    seen = trace(f, torch.ones(1, 1), solver=Differentiating(), max_steps=3)
    assert len(calls) == seen.solution.num_evals == 7
    assert seen.num_evals.tolist() == [1, 3, 5, 7]
    assert seen.residual[:, 0].tolist() == [0.5, 0.25, 0.125, 0.0625]


def test_a_solver_that_splits_the_batch_is_refused() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OneByOne(solvers.FixedPointSolver):
        def init(self, y: Tensor) -> None: ...

        def step(self, y: Tensor, fy: Tensor, carry: None) -> tuple[Tensor, None]:
            return fy, None

        def iterate(self, f, y0, args=(), **options):  # type: ignore[no-untyped-def]
            return super().iterate(f, y0[:1], args, **options)

    with pytest.raises(ValueError, match=r"calls `f` on 1 of 3 samples .* batch of one sample"):
        trace(lambda y: 0.5 * y, torch.ones(3, 1), solver=OneByOne())


def test_errors_are_those_of_solve() -> None:
    with pytest.raises(ValueError, match="Unknown solver 'andersen'"):
        trace(lambda y: y, torch.ones(1, 1), solver="andersen")
    with pytest.raises(ValueError, match="`f` must return its input's shape"):
        trace(lambda y: y[:, :1], torch.ones(1, 2))
    with pytest.raises(TypeError, match="must be floating point"):
        trace(lambda y: y, torch.ones(1, 2, dtype=torch.int64))
