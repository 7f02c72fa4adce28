"""What is made of the loss by budget."""

import pytest

from tasks.lm.internalise import recommend


def rows(**losses: float) -> list[dict[str, float]]:
    return [{"max_steps": int(name[1:]), "loss": loss} for name, loss in losses.items()]


CONVERGED = {"loss": 2.0, "mean_steps": 4.0}


def test_the_smallest_budget_within_a_thousandth() -> None:
    advice = recommend(rows(t0=2.1, t1=2.0015, t2=2.0), CONVERGED)
    assert advice["max_steps"] == 1
    assert advice["extra_loss"] == pytest.approx(0.00075)
    assert advice["saved"] == 0.75


def test_no_solver_at_all() -> None:
    advice = recommend(rows(t0=1.99, t1=2.0), CONVERGED)
    assert (advice["max_steps"], advice["saved"]) == (0, 1.0)


def test_nothing_can_be_saved() -> None:
    advice = recommend(rows(t0=3.0, t1=2.5), CONVERGED)
    assert (advice["max_steps"], advice["saved"]) == (4, 0.0)
