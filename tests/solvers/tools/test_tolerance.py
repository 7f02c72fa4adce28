"""The tolerance helper: known answers, its rule, its evidence, bad input."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import implicit
import solvers
from solvers import SolveError, cheapest_tolerance

GRID = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def halving(y: Tensor) -> Tensor:
    """Solution 1; Picard from 0 is at 1 - 2^-k after k updates."""
    return 0.5 * y + 0.5


def start(count: int = 3) -> Tensor:
    return torch.zeros(count, 1, dtype=torch.float64)


def closeness(y: Tensor) -> Tensor:
    return -(y[:, 0] - 1).abs()


def by_picard(**options: Any) -> solvers.ToleranceAdvice:
    chosen = {"quality": closeness, "loss": 0.01, "rtols": GRID, "solver": "picard"}
    return cheapest_tolerance(halving, start(), **(chosen | options))


@pytest.mark.parametrize(("loss", "rtol", "steps"), [(0.2, 1e-1, 200), (0.01, 1e-3, 8)])
def test_known_answer(loss: float, rtol: float, steps: int) -> None:
    """The error is 2^-k and the residual half of it.

    At 0.1 four updates leave 1/16, and two 1/4. At 0.01 six leave 1/64 > 0.01; at 0.001 nine leave
    1/512, and eight 1/256.
    """
    advice = by_picard(loss=loss)
    assert advice.chosen.rtol == advice.solver.rtol == rtol
    tight = [s for s in advice.table if s.max_steps == 200]
    for setting in tight:
        # The first residual, and f(y0), are 1/2: until it has fallen to a tenth, that counts.
        residuals = [2.0 ** -(k + 1) for k in range(60)]
        scales = [1 - r if r <= 0.05 else 0.5 for r in residuals]
        k = [r <= 1e-8 + setting.rtol * s for r, s in zip(residuals, scales, strict=True)].index(1)
        assert setting.num_steps == k
        assert setting.quality == pytest.approx(-(2.0**-k))
    assert advice.max_steps == steps


def test_advice_is_what_a_solve_with_it_gives() -> None:
    advice = by_picard()
    options = {"solver": advice.solver, "max_steps": advice.max_steps, "throw": False}
    s = solvers.solve(halving, start(), **options)
    assert s.rows_evaluated == advice.chosen.rows_evaluated
    assert closeness(s.value).mean().item() == advice.chosen.quality
    layer = implicit.fixed_point(halving, start(), **options)
    assert torch.equal(layer.value, s.value)
    reference = solvers.solve(halving, start(), solver=solvers.Picard(rtol=1e-6), max_steps=200)
    assert advice.saving == 1 - s.rows_evaluated / reference.rows_evaluated > 0.3


def test_evaluations_are_counted_exactly() -> None:
    calls = 0

    def f(y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return halving(y)

    advice = cheapest_tolerance(f, start(), quality=closeness, loss=0.01)
    assert advice.num_evals == calls


def test_an_answer_that_is_right_at_once_needs_no_step() -> None:
    advice = by_picard(quality=lambda y: (y[:, 0] > -1).double(), loss=0.0)
    assert (advice.chosen.rtol, advice.max_steps, advice.chosen.rows_evaluated) == (1e-1, 0, 3)


def test_a_quality_that_is_good_by_chance_is_not_advised() -> None:
    """Right at the loosest tolerance, wrong at the next, right again."""
    rtols = (1e-1, 1e-2, 1e-3)
    ends = [
        solvers.solve(halving, start(), solver=solvers.Picard(rtol=rtol)).value[0, 0].item()
        for rtol in rtols
    ]

    def quality(y: Tensor) -> float:
        return 0.0 if abs(y[0, 0].item() - ends[1]) < 1e-6 else 1.0

    advice = by_picard(quality=quality, loss=0.5, rtols=rtols)
    assert [s.fits for s in advice.table[:3]] == [True, False, True]
    assert advice.chosen.rtol == 1e-3


@pytest.mark.parametrize(
    "quality",
    [closeness, lambda y: closeness(y).mean(), lambda y: closeness(y).mean().item()],
)
def test_quality_per_sample_or_one_number(quality: Any) -> None:
    assert by_picard(quality=quality).chosen.rtol == by_picard().chosen.rtol


def test_a_number_keeps_its_digits() -> None:
    assert by_picard(quality=lambda y: 1 / 3).chosen.quality == 1 / 3


def test_states_of_all_kinds() -> None:
    tree = {"a": start(), "b": [torch.zeros(3, 2, 2, dtype=torch.float64)]}
    f = lambda y: {"a": halving(y["a"]), "b": [0.5 * y["b"][0]]}  # noqa: E731
    found = cheapest_tolerance(
        f, tree, quality=lambda y: closeness(y["a"]), loss=0.01, solver="picard", rtols=GRID
    )
    assert found.chosen.rtol in GRID
    tokens = torch.zeros(2, 4, 3, dtype=torch.float64)
    found = cheapest_tolerance(
        halving, tokens, quality=lambda y: -(y - 1).abs().mean(-1), loss=0.1, batch_dims=2
    )
    assert found.chosen.quality >= -0.1


def test_every_token_has_its_own_verdict() -> None:
    """Of 2 x 2 tokens one is slow, so that shares differ from those of a batch of two samples."""
    rate = torch.tensor([[0.1, 0.1], [0.1, 0.9]], dtype=torch.float64)[..., None]
    f = lambda y, rate: rate * y + 1 - rate  # noqa: E731
    y0 = torch.zeros(2, 2, 1, dtype=torch.float64)
    advice = cheapest_tolerance(
        f, y0, rate, quality=lambda y: -(y[..., 0] - 1).abs(), loss=1e-3, solver="picard",
        rtols=(1e-1, 1e-6), max_steps=30, batch_dims=2, throw=False,
    )  # fmt: skip
    assert advice.reference.converged == 3 / 4
    assert advice.reference.num_steps == 30
    s = solvers.solve(
        f, y0, rate, solver=solvers.Picard(rtol=1e-6), max_steps=30, batch_dims=2, throw=False
    )
    assert advice.reference.rows_evaluated == s.rows_evaluated


def test_budget_is_looked_for_up_to_the_slowest_sample() -> None:
    """One of three samples needs 2^-k <= 0.03, the others start at the solution."""
    y0 = torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.float64)
    advice = cheapest_tolerance(
        halving, y0, quality=closeness, loss=0.01, solver="picard", rtols=(1e-6,)
    )
    assert advice.reference.num_steps == 19
    budgets = [s.max_steps for s in advice.table]
    assert budgets == [200, 0, 1, 2, 4, 8, 16]
    # The mean error is 2^-k / 3.
    assert [s.fits for s in advice.table] == [True, False, False, False, False, True, True]
    assert advice.max_steps == 8


def test_a_budget_that_the_tolerance_just_needs_is_not_measured_twice() -> None:
    """At 0.3 Picard takes 2 updates: budgets of 0 and 1 are left."""
    advice = by_picard(rtols=(0.3,), loss=0.0)
    assert [s.max_steps for s in advice.table] == [200, 0, 1]


def test_noise_is_the_same_for_all_settings() -> None:
    def noisy(y: Tensor) -> Tensor:
        return halving(y) + 0.01 * torch.randn_like(y)

    def first_draw(y: Tensor) -> Tensor:
        draws.append(torch.rand(()).item())
        return torch.zeros(3)

    draws: list[float] = []
    before = torch.get_rng_state()
    options: dict[str, Any] = {"loss": 0.1, "solver": "picard", "rtols": (1e-1, 1e-2)}
    advice = cheapest_tolerance(noisy, start(), quality=closeness, throw=False, **options)
    assert torch.equal(torch.get_rng_state(), before)
    again = cheapest_tolerance(noisy, start(), quality=closeness, throw=False, **options)
    assert advice.table == again.table
    cheapest_tolerance(lambda y: y, start(), quality=first_draw, **options)
    assert len(set(draws)) == 1


def test_per_sample_arguments_and_tolerances_in_any_order() -> None:
    x = torch.tensor([[0.5], [5.0], [50.0]], dtype=torch.float64)
    quality = lambda y: -(y - 2 * x).abs()[:, 0] / x[:, 0]  # noqa: E731
    f = lambda y, x: 0.5 * y + x  # noqa: E731
    found = [
        cheapest_tolerance(f, 0 * x, x, quality=quality, loss=0.01, rtols=rtols).chosen
        for rtols in (GRID, GRID[::-1])
    ]
    assert found[0] == found[1]


def test_reference_that_does_not_converge() -> None:
    f = lambda y: -1.5 * y + 1  # noqa: E731
    options: dict[str, Any] = {"quality": closeness, "loss": 0.1, "solver": "picard"}
    with pytest.raises(SolveError, match="did not converge"):
        cheapest_tolerance(f, start(), max_steps=5, **options)
    advice = cheapest_tolerance(f, start(), max_steps=5, throw=False, **options)
    assert advice.reference.converged == 0
    assert advice.chosen.quality >= advice.reference.quality - 0.1


def test_table_prints() -> None:
    advice = by_picard()
    lines = str(advice).splitlines()
    assert len(lines) == len(advice.table) + 2
    assert lines[0].split() == ["rtol", "max_steps", "quality", "converged", "rows", "verdict"]
    assert any("too much lost" in line for line in lines)
    assert lines[-1].startswith("rtol=0.001 with max_steps=8 loses 0.0039 of quality")


def test_100_percent_means_that_all_converged() -> None:
    setting = by_picard().chosen
    almost = dataclasses.replace(setting, converged=1999 / 2000)
    assert almost.cells()[3] == "99.9 %"
    assert dataclasses.replace(setting, converged=1.0).cells()[3] == "100 %"


def test_gradients_are_not_recorded() -> None:
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    seen = []

    def quality(y: Tensor) -> Tensor:
        seen.append(y.requires_grad or torch.is_grad_enabled())
        return closeness(y)

    cheapest_tolerance(lambda y: w * y + 0.5, start(), quality=quality, loss=0.1)
    assert not any(seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": -0.1}, "`loss` must be finite and at least 0, got -0.1"),
        ({"loss": math.nan}, "`loss` must be finite"),
        ({"loss": "1 %"}, "`loss` must be finite"),
        ({"rtols": ()}, "`rtols` must be positive and at least one"),
        ({"rtols": (1e-2, 0.0)}, "`rtols` must be positive"),
        ({"rtols": (1e-2, -1e-3)}, "`rtols` must be positive"),
        ({"solver": "picards"}, "Did you mean 'picard'"),
        ({"quality": lambda y: y[:2, 0]}, r"shape \(3,\): got shape \(2,\)"),
        ({"quality": lambda y: torch.tensor(math.nan)}, "`quality` must be finite, got nan"),
        ({"max_steps": -1}, "`max_steps` must be an integer of at least 0"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_picard(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtols": 1e-3}, "`rtols` must be numbers, got 0.001. Give several"),
        ({"rtols": ("1 %",)}, "`rtols` must be numbers"),
        ({"quality": lambda y: None}, "a real number or a tensor, got None"),
        ({"quality": lambda y: y[:, 0] * 1j}, "a real number or a tensor, got tensor"),
    ],
)
def test_values_that_are_not_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        by_picard(**options)


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no samples to measure"):
        cheapest_tolerance(halving, start(0), quality=closeness, loss=0.1)
