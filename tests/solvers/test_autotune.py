"""Choosing a solver by measurement: who wins, why, with what evidence; bad input."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from solvers import autotune

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
# torch's own forward-mode formulas warn when they are first loaded.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def easy(y: Tensor, x: Tensor) -> Tensor:
    return 0.3 * torch.sin(y.roll(1, -1)) + x


def stiff(y: Tensor, x: Tensor) -> Tensor:
    """An implicit time step whose rates go up to 1e4: plain iteration explodes."""
    return x - torch.logspace(0, 4, 8, dtype=y.dtype) * y


class Ticking:
    """A clock that advances by one second per call of `f` and by nothing else."""

    def __init__(self, f: Callable[..., Tensor]):
        self.f, self.now = f, 0.0

    def __call__(self, y: Tensor, *args: Tensor) -> Tensor:
        self.now += 1.0
        return self.f(y, *args)

    def clock(self) -> float:
        return self.now


def tuned(f: Callable[..., Tensor], **options: Any) -> solvers.Tuning:
    """Autotune where time is evaluations: the same on every machine."""
    ticking = Ticking(f)
    return autotune(ticking, torch.zeros_like(X), X, clock=ticking.clock, **options)


def test_fewest_evaluations_win_when_only_they_cost() -> None:
    tuning = tuned(easy, candidates=["picard", "anderson", "broyden"], rtol=1e-10)
    counts = {
        name: solvers.solve(
            easy, torch.zeros_like(X), X, solver=solvers.get_solver(name, rtol=1e-10), max_steps=200
        ).num_evals
        for name in ("picard", "anderson", "broyden")
    }
    assert counts[tuning.name] == min(counts.values())
    assert {trial.solver: trial.num_evals for trial in tuning.table} == counts
    assert tuning.table[0].solver == tuning.name
    assert tuning.table[0].reason == "won"
    assert tuning.name in tuning.verdict
    assert tuning.advice == ""


def test_cheap_map_prefers_the_cheap_step() -> None:
    """By the wall clock, three solvers whose work per step is far apart."""
    tuning = autotune(
        easy, torch.zeros_like(X), X, candidates=["newton_krylov", "picard"], rtol=1e-3
    )
    assert tuning.name == "picard"


def test_winner_can_be_rebuilt_and_does_what_the_table_says() -> None:
    tuning = tuned(easy, rtol=1e-6)
    again = solvers.get_solver(tuning.name, **tuning.options)
    assert again == tuning.solver
    s = solvers.solve(easy, torch.zeros_like(X), X, solver=again, max_steps=200)
    won = tuning.table[0]
    assert (s.num_evals, s.rows_evaluated) == (won.num_evals, won.rows_evaluated)
    fy = easy(s.value, X)
    worst = ((fy - s.value).norm(dim=1) / fy.norm(dim=1)).max().item()
    assert won.worst_residual == pytest.approx(worst)
    assert worst <= 1e-6


def test_divergent_candidates_lose_with_their_reason() -> None:
    tuning = tuned(stiff, candidates=["picard", "newton_krylov"], rtol=1e-8)
    assert tuning.name == "newton_krylov"
    loser = tuning.table[-1]
    assert loser.solver == "picard"
    assert loser.converged == 0
    assert loser.reason


def test_hopeless_candidates_are_broken_off() -> None:
    slow = lambda y, x: 0.999 * y + 0.001 * x  # noqa: E731
    tuning = tuned(slow, candidates=["anderson", "picard"], max_steps=5000, rtol=1e-8)
    assert tuning.name == "anderson"
    assert tuning.table[-1].converged is None
    assert "broken off at 3 times" in tuning.table[-1].reason
    assert tuning.table[-1].num_evals < 50


def test_candidate_that_cannot_run_is_reported() -> None:
    """A map without a derivative: newton_krylov is out, and nothing else is."""

    def f(y: Tensor, x: Tensor) -> Tensor:
        return torch.from_numpy(0.3 * y.numpy()) + x

    tuning = tuned(f, candidates=["newton_krylov", "picard"])
    assert tuning.name == "picard"
    assert tuning.table[-1].converged is None
    assert tuning.table[-1].reason not in ("", "won")


def test_error_of_the_map_is_the_callers() -> None:
    def f(y: Tensor, x: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tuned(f, candidates=["picard", "anderson"])


def test_nothing_converges() -> None:
    with pytest.warns(UserWarning, match="NO CANDIDATE CONVERGED ON ALL SAMPLES"):
        tuning = tuned(
            lambda y, x: y * y + 1 + x.abs(), candidates=["picard", "anderson"], max_steps=5
        )
    assert "NO CANDIDATE CONVERGED" in str(tuning)
    assert "wins by default" in tuning.verdict


def test_most_samples_win() -> None:
    """A rate of -2 per sample diverges for Picard alone."""
    rate = torch.tensor([[0.5], [0.5], [0.5], [-2.0], [0.5], [0.5]], dtype=torch.float64)
    mapped = lambda y, x, rate: rate * y + x  # noqa: E731
    tuning = autotune(
        mapped, torch.zeros_like(X), X, rate, candidates=["picard", "anderson"], rtol=1e-8
    )
    assert tuning.name == "anderson"
    assert {t.solver: t.converged for t in tuning.table}["picard"] == pytest.approx(5 / 6)


def test_evaluations_are_counted_exactly() -> None:
    calls = 0

    def f(y: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return easy(y, x)

    tuning = autotune(f, torch.zeros_like(X), X, candidates=["picard", "anderson"])
    assert tuning.num_evals == calls


def test_same_choice_every_time_and_random_state_kept() -> None:
    before = torch.get_rng_state()
    assert str(tuned(easy)) == str(tuned(easy))
    assert torch.equal(torch.get_rng_state(), before)


def test_table_has_a_row_per_candidate() -> None:
    tuning = tuned(easy, candidates=["picard", solvers.Picard(damping=0.3), "picard"])
    lines = str(tuning).splitlines()
    assert len(tuning.table) == 2
    assert lines[0].split()[:2] == ["solver", "converged"]
    assert any(line.startswith("picard(damping=0.3)") for line in lines)
    assert lines[-1] == tuning.verdict


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"candidates": []}, ValueError, "`candidates` is empty"),
        ({"candidates": ["picards"]}, ValueError, "Did you mean 'picard'"),
        ({"candidates": [3]}, TypeError, "3"),
        ({"max_steps": 0}, ValueError, "`max_steps` must be an integer of at least 1"),
        ({"rounds": 0}, ValueError, "`rounds` must be an integer of at least 1"),
        ({"rounds": True}, ValueError, "`rounds` must be an integer"),
        ({"rtol": -1.0}, ValueError, "`rtol` must be finite and at least 0"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tuned(easy, **options)


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no samples to measure"):
        autotune(torch.cos, torch.zeros(0, 3))
