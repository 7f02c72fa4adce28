"""Which samples stall: what all solvers promise them is in `solvers.testing.samples`."""

import pytest
import torch

import solvers
from solvers import Result


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
