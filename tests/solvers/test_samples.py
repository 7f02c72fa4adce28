"""What every sample is promised, whatever shares its batch."""

import dataclasses
from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import ONE_CALL_A_STEP, residual
from torch import Tensor

import solvers
from solvers import Result

NAMES = solvers.names()
EACH = pytest.mark.parametrize("name", NAMES)
SEEDS = st.integers(0, 10_000)


def tight(name: str) -> solvers.FixedPointSolver:
    return solvers.get_solver(name, rtol=1e-9, atol=1e-12)


def f(y: Tensor, rate: Tensor, x: Tensor) -> Tensor:
    """A map without any product over the batch, so that samples agree to the last bit."""
    return rate * torch.tanh(y.roll(1, -1) + 0.5 * y) + x


def draw(seed: int, batch: int = 6, size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    rate = 0.05 + 0.55 * torch.rand(batch, 1, generator=g, dtype=torch.float64)
    x = torch.randn(batch, size, generator=g, dtype=torch.float64)
    return torch.zeros_like(x), rate, x


@EACH
@given(seed=SEEDS)
def test_batch_mates_change_nothing(name: str, seed: int) -> None:
    y0, rate, x = draw(seed)
    together = solvers.solve(f, y0, rate, x, solver=tight(name), max_steps=200, throw=False)
    for i in range(len(y0)):
        one = slice(i, i + 1)
        alone = solvers.solve(
            f, y0[one], rate[one], x[one], solver=tight(name), max_steps=200, throw=False
        )
        assert torch.allclose(alone.value[0], together.value[i], atol=1e-12, rtol=0)
        assert alone.num_steps[0] == together.num_steps[i]
        assert alone.result[0] == together.result[i]


@EACH
@given(seed=SEEDS)
def test_batch_order_changes_nothing(name: str, seed: int) -> None:
    y0, rate, x = draw(seed)
    order = torch.randperm(len(y0), generator=torch.Generator().manual_seed(seed))
    a = solvers.solve(f, y0, rate, x, solver=tight(name), max_steps=200, throw=False)
    b = solvers.solve(
        f, y0[order], rate[order], x[order], solver=tight(name), max_steps=200, throw=False
    )
    assert torch.allclose(a.value[order], b.value, atol=1e-12, rtol=0)
    assert torch.equal(a.num_steps[order], b.num_steps)


@EACH
@given(seed=SEEDS, exponent=st.integers(-12, 12))
def test_scaling_the_problem_scales_the_answer(name: str, seed: int, exponent: int) -> None:
    """A power of two, so that nothing is rounded; `atol` is 0, as it has the units of y."""
    y0, rate, x = draw(seed)
    c = 2.0**exponent
    solver = solvers.get_solver(name, rtol=1e-8, atol=0.0)
    a = solvers.solve(f, y0, rate, x, solver=solver, max_steps=300)
    b = solvers.solve(
        lambda y, rate, x: c * f(y / c, rate, x), y0, rate, x, solver=solver, max_steps=300
    )
    assert torch.allclose(b.value, c * a.value, rtol=1e-6)
    assert b.num_evals == a.num_evals


@EACH
@given(seed=SEEDS)
def test_affine_contractions_are_solved(name: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 5, generator=g, dtype=torch.float64)
    weight *= 0.9 / torch.linalg.matrix_norm(weight, 2)
    x = torch.randn(3, 5, generator=g, dtype=torch.float64)

    def affine(y: Tensor, x: Tensor) -> Tensor:
        return y @ weight.T + x

    s = solvers.solve(affine, torch.zeros_like(x), x, solver=tight(name), max_steps=500)
    assert torch.allclose(s.value, x @ torch.linalg.inv(torch.eye(5) - weight).T, atol=1e-6)


@EACH
@given(seed=SEEDS)
def test_permuting_the_entries_permutes_the_answer(name: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    weight = 0.2 * torch.randn(5, 5, generator=g, dtype=torch.float64)
    x, order = torch.randn(3, 5, generator=g, dtype=torch.float64), torch.randperm(5, generator=g)

    def solve(weight: Tensor, x: Tensor) -> solvers.Solution:
        return solvers.solve(
            lambda y, x: torch.tanh(y @ weight.T + x), torch.zeros_like(x), x,
            solver=tight(name), max_steps=500, throw=False,
        )  # fmt: skip

    a, b = solve(weight, x), solve(weight[order][:, order], x[:, order])
    assert torch.equal(a.converged, b.converged)
    done = a.converged
    assert torch.allclose(a.value[done][:, order], b.value[done], atol=1e-7)


@EACH
@given(
    seed=SEEDS,
    sample=st.integers(0, 5),
    where=st.sampled_from(["y0", "args"]),
    bad=st.sampled_from([float("nan"), float("inf"), -float("inf")]),
)
def test_a_broken_sample_stays_alone(
    name: str, seed: int, sample: int, where: str, bad: float
) -> None:
    """torchdeq runs all samples to the limit, and no flag tells."""
    y0, rate, x = draw(seed)
    healthy = solvers.solve(f, y0, rate, x, solver=tight(name), max_steps=200, throw=False)
    y0, x = y0.clone(), x.clone()
    (y0 if where == "y0" else x)[sample, 1] = bad
    s = solvers.solve(f, y0, rate, x, solver=tight(name), max_steps=200, throw=False)
    others = torch.arange(len(x)) != sample
    # An infinite start is finite again after one update, but its residual is not.
    assert s.result[sample] == Result.nonfinite
    assert s.num_steps[sample] == 0
    assert torch.allclose(s.value[others], healthy.value[others], atol=1e-12, rtol=0)
    assert torch.equal(s.num_steps[others], healthy.num_steps[others])
    assert torch.equal(s.result[others], healthy.result[others])
    assert s.num_evals <= healthy.num_evals


@EACH
def test_a_diverging_sample_harms_no_other(name: str) -> None:
    y0, rate, x = draw(2)
    healthy = solvers.solve(f, y0, rate, x, solver=tight(name), max_steps=200)
    wild = torch.zeros(len(x), 1, dtype=torch.float64)
    wild[3] = 1.0

    def g(y: Tensor, rate: Tensor, x: Tensor, wild: Tensor) -> Tensor:
        return torch.where(wild > 0, y + 1 + y.abs(), f(y, rate, x))

    s = solvers.solve(g, y0, rate, x, wild, solver=tight(name), max_steps=200, throw=False)
    others = torch.arange(len(x)) != 3
    assert not s.converged[3]
    assert torch.allclose(s.value[others], healthy.value[others], atol=1e-12, rtol=0)
    assert torch.equal(s.num_steps[others], healthy.num_steps[others])
    assert torch.equal(s.result[others], healthy.result[others])


@EACH
def test_work_follows_need(name: str) -> None:
    """torchdeq evaluates 2200, 5400 and 900 rows on such a batch."""
    g = torch.Generator().manual_seed(0)
    rate = torch.full((100, 1), 0.3, dtype=torch.float64)
    rate[::10] = 0.97
    x = torch.randn(100, 8, generator=g, dtype=torch.float64)

    def h(y: Tensor, rate: Tensor, x: Tensor) -> Tensor:
        return rate * torch.sin(y.roll(1, -1)) + 0.1 * x

    solver = solvers.get_solver(name, rtol=1e-6)
    kinds = {}
    for compact in (True, False):
        kinds[compact] = solvers.solve(
            h, torch.zeros_like(x), rate, x, solver=solver, max_steps=2000, compact=compact
        )
    assert torch.allclose(kinds[True].value, kinds[False].value, atol=1e-12)
    assert torch.equal(kinds[True].num_steps, kinds[False].num_steps)
    assert kinds[False].rows_evaluated == 100 * kinds[False].num_evals
    needed = int((kinds[True].num_steps + 1).sum())
    if name in ONE_CALL_A_STEP:
        assert kinds[True].rows_evaluated <= 1.35 * needed
    else:
        assert kinds[True].rows_evaluated < 0.8 * kinds[False].rows_evaluated


@EACH
@given(seed=SEEDS)
def test_leaving_the_batch_changes_no_answer(name: str, seed: int) -> None:
    """Easy, hard, hopeless and broken samples together, with and without compaction."""
    y0, rate, x = draw(seed, batch=9)
    rate[::3] *= 3
    rate[1], x[4, 0] = 0.0, float("nan")
    kinds = [
        solvers.solve(
            f, y0, rate, x, solver=tight(name), max_steps=60, throw=False, compact=compact
        )
        for compact in (True, False)
    ]
    fields = ["result", "num_steps"] + (["num_evals"] if name in ONE_CALL_A_STEP else [])
    for field in fields:
        a, b = (getattr(kind, field) for kind in kinds)
        assert bool((torch.as_tensor(a) == torch.as_tensor(b)).all()), field
    done = kinds[0].converged
    assert torch.allclose(kinds[0].value[done], kinds[1].value[done], atol=1e-12, rtol=0)
    assert kinds[0].rows_evaluated < kinds[1].rows_evaluated


@EACH
def test_a_stopped_sample_is_frozen(name: str) -> None:
    y0, rate, x = draw(3)
    seen = []

    def watched(y: Tensor, rate: Tensor, x: Tensor) -> Tensor:
        seen.append(y.clone())
        return f(y, rate, x)

    s = solvers.solve(watched, y0, rate, x, solver=tight(name), max_steps=200, compact=False)
    assert s.num_steps.min() < s.num_steps.max()
    for i, steps in enumerate(s.num_steps.tolist()):
        for y in seen[steps:] if name in ONE_CALL_A_STEP else seen[-1:]:
            assert torch.equal(y[i], s.value[i])


@EACH
@pytest.mark.parametrize("compact", [True, False])
def test_the_inputs_are_left_alone(name: str, compact: bool) -> None:
    inputs = draw(5)
    copies = [value.clone() for value in inputs]
    s = solvers.solve(f, *inputs, solver=tight(name), max_steps=200, throw=False, compact=compact)
    for value, copy in zip(inputs, copies, strict=True):
        assert torch.equal(value, copy)
    s.value.zero_()
    assert torch.equal(inputs[2], copies[2])


@EACH
def test_coupled_samples_without_args_have_no_stale_verdict(name: str) -> None:
    """Sample 0 is solved at once, until sample 1 arrives; its verdict must be the final one."""

    def g(y: Tensor) -> Tensor:
        return torch.stack((0.9 * y[1], 0.5 * y[1] + 1))

    s = solvers.solve(g, torch.zeros(2, 1, dtype=torch.float64), solver=tight(name), max_steps=300)
    assert torch.allclose(s.value.flatten(), torch.tensor([1.8, 2.0], dtype=torch.float64))
    assert torch.allclose(s.residual, residual(g, s.value), atol=1e-12)


def coupled(seed: int, samples: int = 6) -> Callable[[Tensor], Tensor]:
    """A map of a batch whose samples drive each other, just beyond a contraction."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(samples, samples, generator=g, dtype=torch.float64)
    weight *= 1.1 / torch.linalg.eigvals(weight).abs().max()
    x = torch.randn(samples, 2, generator=g, dtype=torch.float64)
    return lambda y: torch.tanh(weight @ y) + x


@EACH
@pytest.mark.parametrize("max_steps", [6, 10, 15])
@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(12, 60), marks=pytest.mark.slow)])
def test_coupled_samples_report_the_joint_residual_at_any_budget(
    name: str, max_steps: int, seeds: range
) -> None:
    solver = solvers.get_solver(name, rtol=1e-3)
    for seed in seeds:
        g = coupled(seed)
        y0 = torch.zeros(6, 2, dtype=torch.float64)
        s = solvers.solve(g, y0, solver=solver, max_steps=max_steps, throw=False)
        true, scale = residual(g, s.value), g(s.value).square().mean(1).sqrt()
        assert torch.allclose(s.residual, true)
        assert (true <= 1.01e-3 * scale + 1e-8)[s.converged].all()


@EACH
def test_one_unbatched_state(name: str) -> None:
    """torchdeq takes a state of shape (d,) for d scalar problems."""
    weight = torch.tensor([[0.0, 0.8], [-0.8, 0.0]], dtype=torch.float64)
    b = torch.ones(2, dtype=torch.float64)
    s = solvers.solve(
        lambda y: weight @ y + b, torch.zeros(2, dtype=torch.float64), solver=tight(name),
        batch_dims=0, max_steps=300,
    )  # fmt: skip
    assert s.residual.shape == s.converged.shape == ()
    assert torch.allclose(s.value, torch.linalg.solve(torch.eye(2) - weight, b))


@EACH
def test_one_number_as_a_state(name: str) -> None:
    y0 = torch.tensor(0.0, dtype=torch.float64)
    s = solvers.solve(torch.cos, y0, solver=tight(name), batch_dims=0, max_steps=100)
    assert s.value.shape == ()
    assert s.value.item() == pytest.approx(0.7390851332)


@EACH
def test_a_tree_is_solved_like_the_tensor_of_its_parts(name: str) -> None:
    y0, rate, x = draw(6)

    def split(y: Tensor) -> dict[str, Tensor]:
        return {"a": y[:, :1], "b": y[:, 1:].unflatten(1, (3, 1))}

    def g(y: dict[str, Tensor], rate: Tensor, x: Tensor) -> dict[str, Tensor]:
        return split(f(torch.cat((y["a"], y["b"].flatten(1)), 1), rate, x))

    whole = solvers.solve(f, y0, rate, x, solver=tight(name), max_steps=200)
    parts = solvers.solve(g, split(y0), rate, x, solver=tight(name), max_steps=200)
    assert torch.equal(parts.num_steps, whole.num_steps)
    expected = split(whole.value)
    assert all(torch.allclose(parts.value[k], expected[k], atol=1e-12) for k in expected)


@EACH
def test_trees_keep_structure_and_dtypes(name: str) -> None:
    y0 = {"a": torch.zeros(3, 2), "b": (torch.zeros(3, dtype=torch.float64),)}

    def g(y: dict, x: Tensor) -> dict:
        return {"a": 0.5 * y["a"] + x, "b": (0.5 * y["b"][0] + y["a"].double().sum(1),)}

    s = solvers.solve(g, y0, torch.ones(3, 2), solver=name)
    assert s.value["a"].dtype == torch.float32
    assert s.value["b"][0].dtype == torch.float64
    assert torch.allclose(s.value["b"][0], torch.full((3,), 8.0, dtype=torch.float64), atol=1e-3)


def test_keys_of_a_dict_may_come_back_in_another_order() -> None:
    y0 = {"a": torch.zeros(3, 2), "b": torch.zeros(3, 2)}
    s = solvers.solve(lambda y: {"b": 0.5 * y["b"] + 1, "a": 0.5 * y["a"] + 2}, y0)
    assert list(s.value) == ["a", "b"]
    assert torch.allclose(s.value["a"], torch.full((3, 2), 4.0), rtol=1e-4)


@dataclasses.dataclass
class Batch:
    """Per-sample tensors, one of them a level deeper, and something else."""

    rate: Tensor
    more: UserDict[str, Any]
    name: str = "mine"
    itself: Any = None


def test_args_in_containers_that_torch_does_not_know() -> None:
    """They are cut to the samples that still run, as tensors are; the caller's are left alone."""
    rate = torch.tensor([[0.01], [0.01], [0.02], [0.9]], dtype=torch.float64)
    x = torch.ones(4, 3, dtype=torch.float64)
    batch = Batch(rate, UserDict(x=x, length=3))
    batch.itself = batch

    def g(y: Tensor, batch: Batch) -> Tensor:
        assert batch.name == "mine"
        return batch.rate * torch.tanh(y) + batch.more["x"]

    found = solvers.solve(g, torch.zeros_like(x), batch)
    plain = solvers.solve(lambda y, r, x: r * torch.tanh(y) + x, torch.zeros_like(x), rate, x)
    assert torch.equal(found.value, plain.value)
    assert found.rows_evaluated == plain.rows_evaluated < 4 * found.num_evals
    assert batch.rate is rate
    assert batch.more["x"] is x
    with pytest.raises(ValueError, match=r"`args` are per-sample tensors: got shape \(3,\)"):
        solvers.solve(g, torch.zeros_like(x), Batch(rate, UserDict(x=torch.ones(3))))


def test_records_set_by_chance_do_not_hide_a_stall() -> None:
    """Small ones, now and then, among residuals that no longer fall."""
    count = 0

    def f(y: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        step = count - 1
        size = 0.5**step if step < 10 else 1e-3 * (0.97 ** (step // 40) if step % 40 == 0 else 2)
        return y + size

    s = solvers.solve(
        f, torch.zeros(1, 1, dtype=torch.float64), solver=solvers.Picard(rtol=0.0, atol=1e-12),
        max_steps=5000, throw=False,
    )  # fmt: skip
    assert s.result.item() == Result.stalled
    assert s.num_steps.item() < 200


@pytest.mark.parametrize("rate", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("start", [0.0, 1 - 1e-6])
def test_slow_convergence_is_no_stall(rate: float, start: float) -> None:
    """From afar, and from beside the solution, where residuals are small from the start."""
    y0 = torch.full((2, 3), start, dtype=torch.float64)
    s = solvers.solve(
        lambda y: rate * y + (1 - rate), y0, solver=solvers.Picard(rtol=1e-11, atol=0.0),
        max_steps=40_000,
    )  # fmt: skip
    assert s.converged.all()
