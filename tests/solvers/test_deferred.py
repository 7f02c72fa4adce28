"""The conformance suite with the status of accelerators, on the CPU."""

from typing import Any

import pytest
import torch
from parameters import some

import solvers
from solvers.deferred import DeferredStatus
from solvers.testing import PROPERTIES, SEEDED, report, resolve
from solvers.trend import FIRST, LONGEST, SHORTEST, Trend

# A solve that is read now and then may call `f` a few times more.
NOT_HERE = {
    "already_solved_costs_one_evaluation",
    "the_slowest_sample_sets_the_number_of_evaluations",
}
NATIVE = [name for name in solvers.names() if "." not in name]


@pytest.fixture(autouse=True)
def deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every solve is judged as on an accelerator."""
    monkeypatch.setattr("solvers.loop.SampleStatus", DeferredStatus)


@pytest.mark.parametrize("name", some(NATIVE, "anderson", "broyden"))
def test_conforms(name: str) -> None:
    chosen = resolve(name)
    # It drops samples a few steps later, too.
    not_here = NOT_HERE | ({"work_follows_need"} if name == "broyden" else set())
    runs: list[Any] = [(p, (chosen,)) for p in PROPERTIES if p.__name__ not in not_here]
    runs += [(p, (chosen, seed)) for p in SEEDED for seed in range(2)]
    with torch.no_grad():
        report(chosen, runs)


def test_a_reading_is_due_when_the_slowest_sample_is_expected_to_stop() -> None:
    trend = Trend()
    assert trend.due == FIRST
    trend.follow(1, distance=12.0, start=15.0)
    assert trend.due == 1 + 4
    trend.follow(5, distance=1.0, start=15.0)
    assert trend.due == 5 + SHORTEST
    trend.follow(7, distance=2.0, start=15.0)
    assert trend.due == 7 + LONGEST
