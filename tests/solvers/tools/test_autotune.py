"""Choosing a solver by measurement: the winner, the reason, the evidence; bad input."""

import dataclasses
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from solvers import Tuning, autotune

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


class Script:
    """A clock that the candidates advance, and the order in which they solved."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def clock(self) -> float:
        return self.now

    @property
    def solves(self) -> Counter[str]:
        return Counter(self.order)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Actor(solvers.FixedPointSolver):
    """Damped Picard whose n-th solve takes `seconds[n]`, or the last entry from then on."""

    script: Script
    name: str
    seconds: tuple[float, ...]
    damping: float = 0.0
    remembers: int = 0

    def init(self, y: Tensor) -> Tensor:
        number = min(self.script.solves[self.name], len(self.seconds) - 1)
        self.script.now += self.seconds[number]
        self.script.order.append(self.name)
        return y.new_zeros(len(y), self.remembers)

    def step(self, y: Tensor, fy: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        return torch.lerp(fy, y, self.damping), carry


def played(roles: dict[str, dict[str, Any]], **options: Any) -> tuple[Tuning, Script]:
    """Autotune among actors, given the options of each by name."""
    script = Script()
    cast = [Actor(script=script, name=name, **role) for name, role in roles.items()]
    arguments = {"candidates": cast, "clock": script.clock, "rtol": 1e-6} | options
    return autotune(easy, torch.zeros_like(X), X, **arguments), script


def reason_of(name: str, tuning: Tuning) -> str:
    return next(trial.reason for trial in tuning.table if f"name={name!r}" in trial.solver)


def winner_of(tuning: Tuning) -> str:
    assert isinstance(tuning.solver, Actor)
    return tuning.solver.name


def tuned(f: Callable[..., Tensor], **options: Any) -> solvers.Tuning:
    """Autotune with a clock that counts evaluations, the same on every machine."""
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


def test_cheap_contraction_needs_no_derivatives() -> None:
    assert tuned(easy, candidates=["newton_krylov", "picard"], rtol=1e-3).name == "picard"


@pytest.mark.parametrize(("seconds", "winner"), [(0.97, "few"), (0.9, "fast")])
def test_fewer_evaluations_decide_within_five_percent(seconds: float, winner: str) -> None:
    tuning, _ = played(
        {"fast": {"seconds": (seconds,), "damping": 0.3}, "few": {"seconds": (1.0,)}}
    )
    assert winner_of(tuning) == winner
    if winner == "few":
        assert "as fast, but more evaluations" in reason_of("fast", tuning)
        assert "needs the fewest evaluations" in tuning.verdict
    else:
        assert reason_of("few", tuning) == "1.11 times the winner's time"
        assert "the next, took 1.11 times that" in tuning.verdict


def test_then_memory_decides_and_then_the_order() -> None:
    roles: dict[str, Any] = {
        "heavy": {"seconds": (1.0,), "remembers": 9},
        "light": {"seconds": (1.0,), "remembers": 1},
        "later": {"seconds": (1.0,), "remembers": 1},
    }
    tuning, _ = played(roles)
    assert winner_of(tuning) == "light"
    assert reason_of("heavy", tuning) == "as fast with as few evaluations, but more memory"
    assert reason_of("later", tuning) == "equal in all, but later in the list"
    assert "are the least or within 5% of that, and among its equals" in tuning.verdict
    assert "it is the first in the list" in tuning.verdict
    del roles["later"]
    assert "as little memory" in played(roles)[0].verdict


def test_race_compares_medians_and_drops_slow_candidates() -> None:
    """The first solve does not count, and one slow round does not lose the race."""
    tuning, script = played(
        {
            "even": {"seconds": (1.2,)},
            "once_slow": {"seconds": (1.0, 1.0, 1.9, 1.0)},
            "behind": {"seconds": (2.9, 2.6)},
        }
    )
    assert winner_of(tuning) == "once_slow"
    assert script.solves == {"even": 4, "once_slow": 4, "behind": 2}
    assert reason_of("behind", tuning) == "2.60 times the winner's time"


def test_order_of_the_race_changes() -> None:
    names = list("abcdef")
    _, script = played({n: {"seconds": (1 + i / 9,)} for i, n in enumerate(names)}, rounds=3)
    rounds = [tuple(script.order[start : start + 6]) for start in (6, 12, 18)]
    assert all(sorted(order) == names for order in rounds)
    assert len(set(rounds)) == 3


def test_slow_first_candidate_takes_no_part_in_the_race() -> None:
    """It was not broken off, since there was no best time yet."""
    tuning, script = played({"slow": {"seconds": (100.0, 1.0)}, "fast": {"seconds": (2.0,)}})
    assert winner_of(tuning) == "fast"
    assert script.solves["slow"] == 1
    assert reason_of("slow", tuning) == "50.00 times the winner's time"


def test_loading_at_first_use_does_not_rule_a_candidate_out() -> None:
    """It is out of time before its first evaluations, and fast in later solves."""
    tuning, _ = played({"warm": {"seconds": (1.0,)}, "cold": {"seconds": (100.0, 0.5)}})
    assert winner_of(tuning) == "cold"
    tuning, script = played({"warm": {"seconds": (1.0,)}, "cold": {"seconds": (100.0,)}})
    assert winner_of(tuning) == "warm"
    assert script.solves["cold"] == 2


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


def test_a_winner_without_a_registered_name_has_that_of_its_class() -> None:
    tuning, _ = played({"mine": {"seconds": (1.0,)}})
    assert tuning.name == "Actor"
    assert all(trial.solver.startswith("Actor(") for trial in tuning.table)


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
    assert tuning.table[-1].cells()[-2].startswith("> ")


def test_candidate_that_cannot_run_is_reported() -> None:
    """On a map without a derivative only newton_krylov is left out."""

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


def test_error_met_on_the_way_names_the_candidate() -> None:
    """An error that no derivative raised is raised, and does not rule the candidate out."""

    def f(y: Tensor, x: Tensor) -> Tensor:
        if y.abs().max() > 1e3:
            raise ValueError("out of my domain")
        return stiff(y, x)

    with pytest.raises(ValueError, match="out of my domain") as caught:
        tuned(f, candidates=["newton_krylov", "picard"])
    assert caught.value.__notes__ == ["Raised while trying picard."]


def test_nothing_converges() -> None:
    with pytest.warns(UserWarning, match="NO CANDIDATE CONVERGED ON ALL SAMPLES"):
        tuning = tuned(
            lambda y, x: y * y + 1 + x.abs(), candidates=["picard", "anderson"], max_steps=5
        )
    assert "NO CANDIDATE CONVERGED" in str(tuning)
    assert "wins by default" in tuning.verdict


def test_nearest_wins_if_nothing_converges() -> None:
    slow = lambda y, x: 0.9 * y + x  # noqa: E731
    with pytest.warns(UserWarning, match="NO CANDIDATE CONVERGED"):
        tuning = tuned(slow, candidates=[solvers.Picard(damping=0.6), "picard"], max_steps=5)
    assert tuning.options["damping"] == 0.0
    assert tuning.table[0].worst_residual == pytest.approx(0.9**5 * 0.1 / (1 - 0.9**6))


def test_reason_is_the_most_frequent_failure() -> None:
    """Two samples run out of steps and one diverges, or the other way round."""
    mapped = lambda y, x, rate: rate * y + x  # noqa: E731
    for slow, most in ((2, "max_steps"), (1, "diverged")):
        rates = [0.5] * 3 + [0.99] * slow + [-1e3] * (3 - slow)
        rate = torch.tensor(rates, dtype=torch.float64)[:, None]
        tuning = autotune(
            mapped, torch.zeros_like(X), X, rate, candidates=["newton_krylov", "picard"],
            clock=lambda: 0.0,
        )  # fmt: skip
        assert tuning.name == "newton_krylov"
        assert tuning.table[1].reason == f"3 of 6 samples failed, most often: {most}"


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


def test_rows_are_counted_as_solve_counts_them() -> None:
    for batch_dims in (0, 1, 2):
        y0 = torch.ones(6, 8, 2, dtype=torch.float64)
        options: dict[str, Any] = {"batch_dims": batch_dims, "max_steps": 200}
        tuning = autotune(torch.cos, y0, candidates=["picard"], rtol=1e-6, **options)
        s = solvers.solve(torch.cos, y0, solver=tuning.solver, **options)
        assert tuning.table[0].rows_evaluated == s.rows_evaluated


def test_residual_of_a_solution_at_zero_and_of_none() -> None:
    zero = autotune(lambda y: 0.5 * y, torch.zeros(2, 3), candidates=["picard"])
    assert zero.table[0].worst_residual == 0.0
    with pytest.warns(UserWarning, match="worst relative residual of inf"):
        none = autotune(lambda y: y / 0, torch.ones(2, 3), candidates=["picard"])
    assert none.table[0].worst_residual == float("inf")


def test_adapters_are_not_tried_by_default() -> None:
    raced = {trial.solver.split("(")[0] for trial in tuned(easy).table}
    assert raced == {name for name in solvers.names() if "." not in name}


def test_same_noise_for_all_and_pythons_state_kept() -> None:
    def noisy(y: Tensor, x: Tensor) -> Tensor:
        return easy(y, x) + random.random() + torch.rand(())

    before = random.getstate()
    with pytest.warns(UserWarning, match="NO CANDIDATE"):
        tuning = tuned(noisy, candidates=["picard", solvers.Picard(damping=1e-12)], max_steps=3)
    assert random.getstate() == before
    first, second = (trial.worst_residual for trial in tuning.table)
    assert first == pytest.approx(second, rel=1e-6)


def test_same_choice_every_time_and_random_state_kept() -> None:
    before = torch.get_rng_state()
    assert str(tuned(easy)) == str(tuned(easy))
    assert torch.equal(torch.get_rng_state(), before)


def test_table_has_a_row_per_candidate() -> None:
    candidates = ["picard", solvers.Picard(damping=0.3), "picard"]
    tuning = tuned(easy, candidates=candidates, rtol=1e-3, atol=1e-6)
    lines = str(tuning).splitlines()
    assert {trial.solver for trial in tuning.table} == {"picard", "picard(damping=0.3)"}
    assert len(tuning.table) == 2
    assert lines[0].split()[:2] == ["solver", "converged"]
    assert any(line.startswith("picard(damping=0.3)") for line in lines)
    assert lines[-1] == tuning.verdict
    evals = lines[0].index("evals") + len("evals")
    ends = [line[evals - 1 : evals + 1] for line in lines[1:3]]
    assert all(end[0].isdigit() and end[1] == " " for end in ends)


def test_100_percent_means_that_all_converged() -> None:
    trial = tuned(easy, candidates=["picard"]).table[0]
    assert trial.cells()[1] == "100 %"
    assert dataclasses.replace(trial, converged=1999 / 2000).cells()[1] == "99.9 %"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"candidates": []}, ValueError, "`candidates` is empty"),
        ({"candidates": ["picards"]}, ValueError, "Did you mean 'picard'"),
        ({"candidates": [3]}, TypeError, "3"),
        ({"max_steps": 0}, ValueError, "`max_steps` must be an integer of at least 1"),
        ({"rounds": 0}, ValueError, "`rounds` must be an integer of at least 1"),
        ({"graphs": -1}, ValueError, "`graphs` must be an integer of at least 0"),
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
