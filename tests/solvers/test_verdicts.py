"""The rule by which samples stop: what `converged` promises, and what is not divergence."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, final

import pytest
import torch
from parameters import slow
from torch import Tensor
from zoo import specimens

import solvers
from solvers import FixedPointSolver, Result, Solution
from solvers.coupling import Coupling
from solvers.packing import StatePacking
from solvers.status import SampleStatus
from solvers.stopped import measure
from solvers.testing.problems import residual
from solvers.verdicts import RUNNING

D = torch.float64
NATIVE = [name for name in solvers.names() if "." not in name]
EACH = pytest.mark.parametrize("name", NATIVE)
# `robust` runs several of the others, one after another.
OTHERS = pytest.mark.parametrize("name", [slow(n, unless=n != "robust") for n in NATIVE])


def graph_layer(seed: int = 0) -> tuple[Any, Tensor]:
    """A graph layer that couples nodes, with features of very different sizes."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-3, 1, 40, dtype=D)[torch.randperm(40, generator=g)]
    x = torch.randn(40, 4, generator=g, dtype=D) * sizes[:, None]
    links = (torch.rand(40, 40, generator=g, dtype=D) < 0.15) + torch.eye(40, dtype=D)
    links = links / links.sum(1, keepdim=True)
    return (lambda y, x: torch.tanh(0.5 * links @ y + x)), x


@OTHERS
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_running_away_is_not_called_convergence(name: str, dtype: torch.dtype) -> None:
    """There is no fixed point, but the residual becomes small relative to a growing y."""
    g = torch.Generator().manual_seed(0)
    chain = torch.softmax(torch.randn(6, 6, generator=g, dtype=D), 1).to(dtype)
    reward = (torch.rand(6, generator=g, dtype=D) + 1).to(dtype)
    maps = {
        "drift": lambda y: y + 1 + 0.5 * torch.sin(y),
        "steps": lambda y: y + 1,
        "undiscounted values": lambda y: reward + y @ chain.T,
    }
    for what, f in maps.items():
        y0 = torch.zeros(3, 6, dtype=dtype)
        s = solvers.solve(f, y0, solver=name, max_steps=200, throw=False)
        assert not s.converged.any(), what


KINKED = {
    "|y| + 1": lambda y: y.abs() + 1,
    "|y| + 1 + 0.3 sin y": lambda y: y.abs() + 1 + 0.3 * torch.sin(y),
}


@OTHERS
@pytest.mark.parametrize("f", KINKED.values(), ids=KINKED)
def test_a_residual_lost_in_rounding_is_no_convergence(
    name: str, f: Callable[[Tensor], Tensor]
) -> None:
    """Large on the left, so that it seems to fall, but 1 or more everywhere on the right."""
    for size, start, dtype in itertools.product((1, 8), (-2, 1), (torch.float32, D)):
        y0 = torch.full((1, size), float(start), dtype=dtype)
        s = solvers.solve(f, y0, solver=name, max_steps=60, throw=False)
        assert not s.converged.any(), (size, start, dtype, s.value)


def test_a_sample_that_is_in_doubt_stays_in_the_batch_until_it_is_judged() -> None:
    """One without a fixed point, one that takes longer, and six that end at once."""
    f = lambda y, kink, x: torch.where(kink, y.abs() + 1, torch.sin(y) * x)  # noqa: E731
    y0, kink = torch.ones(8, 8, dtype=D), torch.arange(8)[:, None] == 0
    x = torch.tensor([[0.0], [1.0], *[[0.0]] * 6], dtype=D)
    # The steps of the first hang on rounding: 7 to 75 with a start 10 % off. A tight tolerance
    # keeps the second one longer.
    solver = solvers.Broyden(rtol=1e-14, atol=0.0)
    s = solvers.solve(f, y0, kink, x, solver=solver, max_steps=300, throw=False)
    assert s.num_steps[0] < s.num_steps[1]
    assert s.converged.tolist() == [False] + 7 * [True]
    run = solvers.Run(None, y0, kink, x, solver=solver, max_steps=300)
    reported: dict[int, bool] = {}
    while run.point is not None:
        run.tell(f(run.point, *run.args))
        rows, part = run.newly_stopped()
        reported |= dict(zip(rows.tolist(), part.converged.tolist(), strict=True))
    assert reported == dict(enumerate(s.converged.tolist()))


@OTHERS
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_convergence_needs_a_residual_that_fell(name: str, dtype: torch.dtype) -> None:
    """There are fixed points, but iterates may pass them on their way to infinity."""
    g = torch.Generator().manual_seed(1)
    weight = (torch.randn(16, 16, generator=g, dtype=D) / 4).to(dtype)
    x = torch.randn(64, 16, generator=g, dtype=D).to(dtype)

    def f(y: Tensor, x: Tensor) -> Tensor:
        return y - 0.5 * torch.tanh(y @ weight.T + x)

    s = solvers.solve(f, torch.zeros_like(x), x, solver=name, max_steps=200, throw=False)
    first = residual(f, torch.zeros_like(x), x)
    assert (residual(f, s.value, x) <= 0.1 * first)[s.converged].all()


def test_a_start_within_tolerance_has_converged() -> None:
    """Its residual need not fall, which rounding would prevent."""
    y0 = torch.full((2, 3), 2.0) * (1 + 1e-6)
    s = solvers.solve(lambda y: 0.5 * y + 1, y0)
    assert s.num_steps.tolist() == [0, 0]
    s = solvers.solve(lambda y: 0.5 * y + 1, y0 * (1 + 3e-5), solver="picard")
    assert s.converged.all()
    assert s.num_steps.max() <= 3


@pytest.mark.parametrize("rows", [1, 2])
def test_a_residual_within_the_absolute_tolerance_need_not_have_fallen_far(rows: int) -> None:
    y0 = torch.ones(rows, 3, dtype=D)
    s = solvers.solve(lambda y: 0.5 * y, y0, solver=solvers.Picard(rtol=0.0, atol=0.2))
    assert s.num_steps.tolist() == [2] * rows
    assert torch.equal(s.value, 0.25 * y0)


@EACH
def test_a_state_without_entries_has_converged(name: str) -> None:
    s = solvers.solve(lambda y: y / 2, torch.zeros(3, 0), solver=name)
    assert s.converged.tolist() == [True] * 3
    assert s.residual.tolist() == [0.0] * 3


def test_a_sample_whose_norm_overflows_is_not_called_converged() -> None:
    """The norm of f(y) overflows although no entry does."""
    y0 = torch.full((1, 64), 1e38)
    s = solvers.solve(lambda y: y + 1e37, y0, solver="picard", max_steps=3, throw=False)
    assert not s.converged.any()


@pytest.mark.parametrize("factor", [3.0, 10.0, 100.0])
def test_a_nilpotent_map_grows_to_its_exact_end(factor: float) -> None:
    chain = torch.diag(torch.full((15,), factor, dtype=D), -1)
    f = lambda y: y @ chain.T + 1  # noqa: E731
    s = solvers.solve(f, torch.zeros(2, 16, dtype=D), solver="picard")
    assert s.num_steps.tolist() == [16, 16]
    assert torch.equal(f(s.value), s.value)
    # As tokens, each of which depends on the one before it.
    tokens = solvers.solve(
        lambda y, x: factor * torch.nn.functional.pad(y, (0, 0, 1, 0))[:, :-1] + x,
        torch.zeros(2, 16, 1, dtype=D), torch.ones(2, 16, 1, dtype=D), solver="picard",
        batch_dims=2,
    )  # fmt: skip
    assert torch.equal(tokens.value[..., 0], s.value)


@pytest.mark.parametrize("size", [10, 30, 60])
def test_broyden_ends_on_linear_maps_after_twice_as_many_steps_as_entries(size: int) -> None:
    """The theorem of Gay (1979); on the way the residual may grow by any factor."""
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        matrix = 1.5 * torch.randn(size, size, generator=g, dtype=D) / size**0.5
        x = torch.randn(1, size, generator=g, dtype=D)
        solver = solvers.Broyden(history=2 * size, rtol=1e-6)
        s = solvers.solve(
            lambda y, x, m=matrix: y @ m.T + x, torch.zeros_like(x), x, solver=solver,
            max_steps=2 * size + 2,
        )  # fmt: skip
        assert s.converged.all()


def test_growth_at_the_end_of_the_budget_is_divergence() -> None:
    """A map of 100 entries might still be nilpotent, but there are no steps left to see it."""
    y0 = torch.ones(2, 100, dtype=D)
    rate = torch.tensor([[3.0], [0.99]], dtype=D)
    s = solvers.solve(lambda y, a: a * y + 1, y0, rate, solver="picard", max_steps=30, throw=False)
    assert s.result.tolist() == [Result.diverged, Result.max_steps]
    one = solvers.solve(lambda y: 3 * y + 1, y0[:1], solver="picard", max_steps=30, throw=False)
    assert one.result.item() == Result.diverged


def test_growth_that_lasts_is_divergence() -> None:
    s = solvers.solve(
        lambda y: 3 * y + 1, torch.zeros(1, 2, dtype=D), solver="picard", max_steps=500, throw=False
    )
    assert s.result.item() == Result.diverged
    assert s.num_steps.item() < 20


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaps(FixedPointSolver):
    """Every second step is a trial far off; the next one continues from the point before it."""

    def init(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y, torch.zeros(len(y), dtype=torch.bool)

    def on_trial(self, carry: tuple[Tensor, Tensor]) -> Tensor:
        return carry[1]

    def step(self, y: Tensor, fy: Tensor, carry: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        kept, tried = carry
        following = torch.where(tried[:, None], kept, fy)
        return torch.where(tried[:, None], following, torch.full_like(y, -1e9)), (following, ~tried)


def test_a_trial_point_ends_no_sample() -> None:
    """It may grow beyond all bounds, or leave the domain of f."""
    for f in (lambda y: torch.sqrt(y + 2), lambda y: 1 + torch.where(y < 0, -1e30 * y, 0.5 * y)):
        s = solvers.solve(f, torch.ones(2, 1, dtype=D), solver=Leaps(rtol=1e-9), max_steps=160)
        assert torch.allclose(s.value, torch.full_like(s.value, 2.0))


def test_a_solver_with_memory_may_stand_still_for_a_step() -> None:
    """Rounding can make an extrapolation return its start; the next one need not."""

    @final
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Hesitates(FixedPointSolver):
        def init(self, y: Tensor) -> Tensor:
            return torch.zeros(len(y))

        def step(self, y: Tensor, fy: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
            return torch.where((carry % 2 == 0)[:, None], y, fy), carry + 1

    s = solvers.solve(lambda y, x: 0.5 * y + x, torch.zeros(2, 1), torch.ones(2, 1),
                      solver=Hesitates(), max_steps=60)  # fmt: skip
    assert s.converged.all()


@EACH
def test_coupled_samples_with_args_are_judged_together(name: str) -> None:
    f, x = graph_layer()
    y0 = torch.zeros_like(x)
    s = solvers.solve(f, y0, x, solver=name, max_steps=400, independent=False, throw=False)
    true = residual(f, s.value, x)
    assert torch.allclose(s.residual, true, rtol=1e-6, atol=1e-12)
    tolerance = 1e-8 + 1e-5 * f(s.value, x).square().mean(1).sqrt()
    assert (true <= 1.01 * tolerance)[s.converged].all()
    assert s.rows_evaluated == 40 * s.num_evals
    if name in ("picard", "anderson", "anderson_safe", "broyden"):
        assert s.converged.all()
    joint = solvers.solve(f, y0, x, solver=name, max_steps=400, batch_dims=0, throw=False)
    assert torch.allclose(joint.residual, true_joint(f, joint, x), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("seed", [1, 6, 40, 56])
def test_a_sample_moved_by_coupled_ones_is_not_called_stalled(seed: int) -> None:
    """Its best residual was set while it counted as converged, before the others moved it."""
    f, x = graph_layer(seed)
    solver = solvers.Anderson(ridge=1e-6)
    s = solvers.solve(lambda y: f(y, x), torch.zeros_like(x), solver=solver, max_steps=300)
    assert s.converged.all()


def true_joint(f: Any, s: Solution, x: Tensor) -> Tensor:
    return (f(s.value, x) - s.value).square().mean().sqrt()


def test_advice_names_the_cure_for_coupled_samples() -> None:
    f, x = graph_layer()
    with pytest.raises(RuntimeError) as caught:
        solvers.solve(f, torch.zeros_like(x), x, max_steps=300)
    assert "independent=False" in "".join(caught.value.__notes__)
    # As one state, both are solved by a few steps.
    vector = torch.linspace(0, 1, 32)
    with pytest.raises(solvers.SolveError, match=r"32 numbers .* `batch_dims=0`"):
        solvers.solve(lambda y: vector - y.roll(1), torch.zeros(32))
    with pytest.raises(solvers.SolveError) as failed:
        solvers.solve(lambda y: vector.view(8, 4) - y.roll(1, 0), torch.zeros(8, 4), max_steps=3)
    assert "batch_dims=0" in "".join(failed.value.__notes__)


def test_who_may_influence_whom() -> None:
    """Samples on their own; a coupled batch; and tokens, which see those before them."""
    y, tokens = torch.zeros(3, 2), torch.zeros(2, 3, 2)
    alone = Coupling(StatePacking(y, 1), independent=True)
    batch = Coupling(StatePacking(y, 1), independent=False)
    causal = Coupling(StatePacking(tokens, 2), independent=True)
    mixed = Coupling(StatePacking(tokens, 2), independent=False)
    result = torch.tensor([Result.converged, RUNNING, Result.nonfinite], dtype=torch.int8)
    six = torch.tensor([0, 0, 0, 0, RUNNING, Result.stalled], dtype=torch.int8)
    assert alone.settled(result).tolist() == [True, False, True]
    assert batch.settled(result).tolist() == [False, False, True]
    assert causal.settled(six).tolist() == [True, True, True, False, False, True]
    assert mixed.settled(six).tolist() == [False, False, False, False, False, True]
    assert alone.patience(result, 2).tolist() == [4, 4, 4]
    assert batch.patience(result, 2).tolist() == [12, 12, 12]
    assert causal.patience(six, 2).tolist() == [4, 8, 12] * 2
    assert mixed.patience(six, 2).tolist() == [8, 16, 24] * 2
    norm = torch.tensor([1.0, 3.0, torch.nan, 2.0, 0.0, torch.inf])
    assert alone.largest(norm[:2]).tolist() == [1, 3]
    assert batch.largest(norm[1:4]).tolist() == [3, 3, 3]
    assert causal.largest(norm).tolist() == [1, 3, 3, 2, 2, 2]
    assert mixed.largest(norm).tolist() == [2, 3, 3] * 2
    quiet = torch.tensor([True, True, False, True, False, True])
    assert batch.at_rest(quiet[:3]).tolist() == [False] * 3
    assert causal.at_rest(quiet).tolist() == [True, True, False, True, False, False]
    assert mixed.at_rest(quiet).tolist() == [True, False, False] * 2


def test_a_coupled_sample_is_given_up_with_those_that_may_influence_it() -> None:
    """And a step later than they stop, so that it can still profit from their last one."""
    y, first = torch.zeros(2, 1), torch.tensor([True, False])
    status = SampleStatus(y, StatePacking(y, 1), solver=solvers.Picard(), independent=False)
    status.give_up(first)
    assert status.num_running == 2
    status.stop(~first, Result.nonfinite)
    status.give_up(first)
    assert status.num_running == 1
    status.give_up(first)
    assert status.result.tolist() == [Result.stalled, Result.nonfinite]


def test_a_residual_that_cannot_be_measured_is_infinite() -> None:
    y = torch.zeros(3, 1)
    status = SampleStatus(y, StatePacking(y, 1), solver=solvers.Picard(), independent=False)
    status.update(y, y + 1, 0)
    measure(status, torch.tensor([[torch.nan], [torch.inf], [2.0]]))
    assert status.norm.tolist() == [torch.inf, torch.inf, 2]


def test_a_linear_equation_is_measured_against_its_right_hand_side() -> None:
    """And not against f(y), which is a hundred times larger at the solution."""
    b = torch.ones(2, 3, dtype=D)
    f, picard = (lambda y: b + 0.99 * y), solvers.Picard(rtol=0.01, atol=0.0)
    s = picard.iterate(f, torch.zeros_like(b), max_steps=1000, rhs=b)
    assert s.converged.all()
    assert (s.residual >= 0.0099).all()
    assert (s.residual <= 0.01).all()


@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
def test_a_right_hand_side_out_of_range_is_left_out_of_the_size_of_the_others(lost: float) -> None:
    rhs = torch.tensor([[3.0, 4.0], [0.0, 0.0], [lost, 0.0]])
    packing = StatePacking(rhs, 1)
    assert Coupling(packing, independent=True).sizes(rhs)[:2].tolist() == [5, 0]
    found = Coupling(packing, independent=False).sizes(rhs)
    assert torch.allclose(found[:2], torch.tensor([5.0, 5 / 3**0.5]))


def test_a_large_sample_that_has_stopped_stays_where_it_is() -> None:
    """Beyond some size they are kept by another way than small ones."""
    rate = torch.tensor([[0.1], [0.9]])
    y0 = torch.zeros(2, 2**14 + 1)
    solve = functools.partial(
        solvers.solve, lambda y, rate: rate * y + 1, solver="picard", max_steps=200
    )
    both, first = solve(y0, rate, compact=False), solve(y0[:1], rate[:1])
    assert torch.equal(both.value[:1], first.value)
    assert both.num_steps[0] == first.num_steps[0] < both.num_steps[1]


@pytest.mark.parametrize("other", [0.5, torch.inf])
def test_a_trial_point_does_not_count_as_the_largest_residual(other: float) -> None:
    """By the fast paths, and by the rule itself where a neighbour has no value."""
    y = torch.zeros(2, 1, dtype=D)
    for trial, peak in ((None, [2.0, 1.0]), (torch.tensor([True, False]), [1.0, 1.0])):
        status = SampleStatus(y, StatePacking(y, 1), solver=solvers.Picard(), independent=True)
        status.update(y, y + 1, 0)
        status.update(y + 1, y + 1 + torch.tensor([[2.0], [other]]), 1, trial)
        assert status.past.peak.tolist() == peak


def same(a: Solution, b: Solution) -> None:
    for field in ("value", "residual", "result", "num_steps"):
        assert torch.equal(getattr(a, field), getattr(b, field)), field
    assert a.num_evals == b.num_evals


@pytest.mark.parametrize("name", ["picard", "anderson", "broyden", slow("newton_krylov")])
def test_fast_paths_follow_the_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Solves with and without them agree, for samples, tokens and coupled samples."""
    budget = 6 if name == "newton_krylov" else 25
    for p in specimens(1):
        if p.y0.dtype == torch.bfloat16:
            continue
        solver = solvers.get_solver(name, rtol=p.rtol, atol=0.0)
        tokens = [t.unsqueeze(0) for t in (p.y0, *p.args)]
        cases = [
            (p.f, (p.y0, *p.args), {}),
            (p.f, (p.y0, *p.args), {"independent": False}),
            (lambda y, *a, f=p.f: f(y[0], *(t[0] for t in a))[None], tokens, {"batch_dims": 2}),
        ]
        for f, given, options in cases:
            options = {"max_steps": budget, "throw": False, "compact": False, **options}
            fast = solvers.solve(f, *given, solver=solver, **options)
            with monkeypatch.context() as patched:
                patched.setattr("solvers.status.usual_step", lambda *_: False)
                same(solvers.solve(f, *given, solver=solver, **options), fast)
