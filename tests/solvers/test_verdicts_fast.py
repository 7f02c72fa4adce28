"""The fast paths of the verdicts, and those of accelerators, agree on random residuals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import solvers
from solvers.deferred import DeferredStatus
from solvers.packing import StatePacking
from solvers.status import SampleStatus
from solvers.trend import LONGEST


def residuals(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Draw the residuals of every step: falling, growing, constant, tiny, huge or not finite."""
    g = torch.Generator().manual_seed(seed)
    rates = torch.tensor([0.03, 0.3, 0.9, 1.0, 1.0, 1.3, 30.0], dtype=dtype)
    rate = rates[torch.randint(len(rates), shape[:-1], generator=g)][..., None]
    size = 10.0 ** torch.randint(-9, 3, (*shape[:-1], 1), generator=g).to(dtype)
    broken = torch.rand(shape[0], generator=g) < 0.3
    when = torch.randint(1, 60, (shape[0],), generator=g)
    bad = (math.nan, math.inf, -math.inf, 1e20, 1e-40, 0.0)[seed % 6]
    found = []
    for step in range(60):
        r = size * torch.randn(shape, generator=g, dtype=dtype)
        r[broken & (when == step)] = bad
        found.append(r)
        wobble = torch.rand((*shape[:-1], 1), generator=g, dtype=dtype)
        size = size * torch.where(wobble < 0.1, 2.0, rate)
    return found


def walked(
    seed: int, shape: tuple[int, ...], dtype: torch.dtype, rtol: float, independent: bool,
    batch_dims: int, trials: bool, kind: type[SampleStatus] = SampleStatus,
) -> list[Tensor]:  # fmt: skip
    """Return the verdicts after each step, and then what is reported at the end."""
    g = torch.Generator().manual_seed(seed)
    packing = StatePacking(torch.randn(shape, generator=g, dtype=dtype), batch_dims)
    y = torch.randn(packing.num_samples, shape[-1], generator=g, dtype=dtype)
    solver = solvers.Picard(rtol=rtol, atol=0.0 if seed % 2 else 1e-6)
    status = kind(y, packing, solver=solver, independent=independent)
    seen = []
    for step, left in enumerate(residuals(seed, shape, dtype)):
        trial = torch.rand(len(y), generator=g) < 0.2 if trials and step else None
        running = status.update(y, y + left.view_as(y), step, trial)
        seen.append(status.result.clone())
        if running == 0:
            break
        y = status.advance(y, y + torch.randn(y.shape, generator=g, dtype=dtype))
    s = status.finish(0, 0)
    return [*seen, s.result, s.num_steps, s.residual, s.value]


batches = given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 9), entries=st.integers(1, 5),
    rtol=st.sampled_from([0.0, 1e-6, 1e-2]), trials=st.booleans(),
)  # fmt: skip
KINDS = ["independent", "coupled", "tokens", "coupled tokens"]


def shape_of(kind: str, seed: int, rows: int, entries: int) -> tuple[int, ...]:
    return (rows, 1 + seed % 3, entries) if "tokens" in kind else (rows, entries)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@batches
def test_random_walks_have_the_verdicts_of_the_rule(
    kind: str, dtype: torch.dtype, seed: int, rows: int, entries: int, rtol: float, trials: bool
) -> None:
    shape = shape_of(kind, seed, rows, entries)
    given_ = (seed, shape, dtype, rtol, "coupled" not in kind, len(shape) - 1, trials)
    fast = walked(*given_)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("solvers.status.usual_step", lambda *_: False)
        slow = walked(*given_)
    assert len(fast) == len(slow)
    for step, (a, b) in enumerate(zip(fast, slow, strict=True)):
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), step


@pytest.mark.parametrize("kind", KINDS)
@batches
def test_random_walks_that_are_read_now_and_then_have_the_same_verdicts(
    kind: str, seed: int, rows: int, entries: int, rtol: float, trials: bool
) -> None:
    shape = shape_of(kind, seed, rows, entries)
    given_ = (seed, shape, torch.float64, rtol, "coupled" not in kind, len(shape) - 1, trials)
    (*steps, result, num_steps, residual, value) = walked(*given_)
    *more, result_, num_steps_, residual_, value_ = walked(*given_, kind=DeferredStatus)
    assert 0 <= len(more) - len(steps) < LONGEST
    for step, (a, b) in enumerate(zip(steps, more, strict=False)):
        assert torch.equal(a, b), step
    assert torch.equal(result, result_)
    assert torch.equal(num_steps, num_steps_)
    assert torch.equal(residual.nan_to_num(), residual_.nan_to_num())
    assert torch.equal(value.nan_to_num(), value_.nan_to_num())
