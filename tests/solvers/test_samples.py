"""Arguments in containers, and which samples stall; the rest is in `solvers.testing.samples`."""

import dataclasses
from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from solvers import Result


def test_keys_of_a_dict_may_come_back_in_another_order() -> None:
    y0 = {"a": torch.zeros(3, 2), "b": torch.zeros(3, 2)}
    s = solvers.solve(lambda y: {"b": 0.5 * y["b"] + 1, "a": 0.5 * y["a"] + 2}, y0)
    assert list(s.value) == ["a", "b"]
    assert torch.allclose(s.value["a"], torch.full((3, 2), 4.0), rtol=1e-4)


@dataclasses.dataclass
class Batch:
    """A container of per-sample tensors, one of them nested, and an attribute without tensors."""

    rate: Tensor
    more: UserDict[str, Any]
    name: str = "mine"
    itself: Any = None


def test_rows_leave_as_soon_as_a_quarter_has_stopped() -> None:
    """Not before: a smaller batch has to repay the copy."""
    for stopping, calls_of_four in ((1, 2), (2, 2)):
        rate = torch.tensor([[0.0]] * stopping + [[0.5]] * (4 - stopping), dtype=torch.float64)
        s = solvers.solve(lambda y, r: r * y + 1, torch.zeros_like(rate), rate, solver="picard")
        rows = 4 * calls_of_four + (4 - stopping) * (s.num_evals - calls_of_four)
        assert s.rows_evaluated == rows
    rate = torch.tensor([[0.0]] + [[0.5]] * 4, dtype=torch.float64)
    s = solvers.solve(lambda y, r: r * y + 1, torch.zeros_like(rate), rate, solver="picard")
    assert s.rows_evaluated == 5 * s.num_evals


def test_args_in_containers_that_torch_does_not_know() -> None:
    """They are cut to the running samples like tensors; the caller's containers do not change."""
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
    """Noise sets small records now and then, although residuals no longer fall."""
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
def test_slow_convergence_is_not_called_stalled(rate: float, start: float) -> None:
    """From a far start, and from one near the solution, with small residuals at once."""
    y0 = torch.full((2, 3), start, dtype=torch.float64)
    s = solvers.solve(
        lambda y: rate * y + (1 - rate), y0, solver=solvers.Picard(rtol=1e-11, atol=0.0),
        max_steps=40_000,
    )  # fmt: skip
    assert s.converged.all()
