"""Properties of each sample of a batch, whatever the other samples are."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from solvers.base import FixedPointSolver
from solvers.solution import Result, Solution
from solvers.solve import solve
from solvers.testing.evidence import (
    Failures,
    budget,
    differ,
    equal,
    honest,
    label,
    promised,
    share,
    tight,
    unless,
    width,
)
from solvers.testing.problems import residual
from solvers.types import State


def draw(
    solver: FixedPointSolver, seed: int, batch: int = 6, entries: int = 4
) -> tuple[Callable[..., Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Draw a contraction per sample: the map, and y0, rate and x.

    The map has no product over the batch, so that samples agree to the last bit.
    """
    g = torch.Generator().manual_seed(seed)
    rate = 0.05 + 0.55 * torch.rand(batch, 1, generator=g, dtype=torch.float64)
    x = torch.randn(batch, width(solver, entries), generator=g, dtype=torch.float64)

    def f(y: Tensor, rate: Tensor, x: Tensor) -> Tensor:
        moved = y.roll(1, -1) + 0.5 * y
        return rate * (moved if solver.linear else torch.tanh(moved)) + x

    return f, (torch.zeros_like(x), rate * share(solver), x)


def run(
    solver: FixedPointSolver, f: Callable[..., State], y0: State, *args: Tensor,
    steps: int = 200, compact: bool = True,
) -> Solution:  # fmt: skip
    """Solve to a tight tolerance, without an error for failed samples."""
    return solve(
        f, y0, *args, solver=tight(solver), max_steps=budget(solver, steps), throw=False,
        compact=compact,
    )  # fmt: skip


def alike(case: str, a: Solution, b: Solution, samples: Tensor) -> Failures:
    """Check that the chosen samples of two solves have the same value, steps and verdict."""
    yield from differ(f"{case}: value", a.value[samples], b.value[samples], rtol=0.0, atol=1e-12)
    yield from equal(f"{case}: num_steps", a.num_steps[samples], b.num_steps[samples])
    yield from equal(f"{case}: result", a.result[samples], b.result[samples])


def batch_mates_change_nothing(solver: FixedPointSolver, seed: int) -> Failures:
    """Each sample has the same result alone as in the batch."""
    f, inputs = draw(solver, seed)
    together = run(solver, f, *inputs)
    for i in range(len(inputs[0])):
        alone = run(solver, f, *(value[i : i + 1] for value in inputs))
        expand = dataclasses.replace(
            alone,
            value=alone.value.expand_as(together.value),
            num_steps=alone.num_steps.expand_as(together.num_steps),
            result=alone.result.expand_as(together.result),
        )
        yield from alike(f"sample {i} alone", expand, together, torch.tensor([i]))


def batch_order_changes_nothing(solver: FixedPointSolver, seed: int) -> Failures:
    """Permuting the batch permutes the results."""
    f, inputs = draw(solver, seed)
    order = torch.randperm(len(inputs[0]), generator=torch.Generator().manual_seed(seed))
    a, b = run(solver, f, *inputs), run(solver, f, *(value[order] for value in inputs))
    yield from differ("value", b.value, a.value[order], rtol=0.0, atol=1e-12)
    yield from equal("num_steps", b.num_steps, a.num_steps[order])


def scaling_the_problem_scales_the_answer(
    solver: FixedPointSolver, seed: int, exponent: int | None = None
) -> Failures:
    """A map scaled by a power of two, which is exact, has the same steps and a scaled value."""
    f, inputs = draw(solver, seed)
    c = 2.0 ** (seed % 25 - 12 if exponent is None else exponent)
    # `atol` has the units of y, so it must be 0 here.
    chosen, steps = tight(solver, 1e-8, 0.0), budget(solver, 300)
    a = solve(f, *inputs, solver=chosen, max_steps=steps, throw=False)
    b = solve(
        lambda y, rate, x: c * f(y / c, rate, x), *inputs, solver=chosen, max_steps=steps,
        throw=False,
    )  # fmt: skip
    yield from unless(a.converged & b.converged, f"{a.describe()} Scaled: {b.describe()}")
    yield from differ(f"value, scaled by {c:g}", b.value, c * a.value, rtol=1e-6)
    yield from unless(b.num_evals == a.num_evals, f"{a.num_evals} calls, scaled {b.num_evals}")


def affine_contractions_are_solved(solver: FixedPointSolver, seed: int) -> Failures:
    """Random affine contractions have the solution that dense algebra gives."""
    g, size = torch.Generator().manual_seed(seed), width(solver, 5)
    weight = torch.randn(size, size, generator=g, dtype=torch.float64)
    weight *= 0.9 * share(solver) / torch.linalg.matrix_norm(weight, 2)
    x = torch.randn(3, size, generator=g, dtype=torch.float64)
    s = run(solver, lambda y, x: y @ weight.T + x, torch.zeros_like(x), x, steps=500)
    yield from unless(s.converged, s.describe())
    yield from differ("value", s.value, x @ torch.linalg.inv(torch.eye(size) - weight).T, atol=1e-6)


def permuting_the_entries_permutes_the_answer(solver: FixedPointSolver, seed: int) -> Failures:
    """Permuting the entries of the map permutes those of the solution."""
    g, size = torch.Generator().manual_seed(seed), width(solver, 5)
    weight = 0.2 * torch.randn(size, size, generator=g, dtype=torch.float64)
    x = torch.randn(3, size, generator=g, dtype=torch.float64)
    order = torch.randperm(size, generator=g)

    def found(weight: Tensor, x: Tensor) -> Solution:
        def f(y: Tensor, x: Tensor) -> Tensor:
            moved = y @ weight.T + x
            return moved if solver.linear else torch.tanh(moved)

        return run(solver, f, torch.zeros_like(x), x, steps=500)

    a, b = found(weight, x), found(weight[order][:, order], x[:, order])
    yield from equal("converged", b.converged, a.converged)
    done = a.converged & b.converged
    yield from differ("value", b.value[done], a.value[done][:, order], atol=1e-7)


def a_broken_sample_stays_alone(
    solver: FixedPointSolver, seed: int, sample: int | None = None, where: str | None = None,
    bad: float | None = None,
) -> Failures:  # fmt: skip
    """NaN or inf in the start or arguments of one sample changes no other sample."""
    f, (y0, rate, x) = draw(solver, seed)
    sample = seed % len(x) if sample is None else sample
    where = where or ("y0", "args")[seed % 2]
    bad = (math.nan, math.inf, -math.inf)[seed % 3] if bad is None else bad
    healthy = run(solver, f, y0, rate, x)
    y0, x = y0.clone(), x.clone()
    (y0 if where == "y0" else x)[sample, -1] = bad
    s = run(solver, f, y0, rate, x)
    # An infinite start is finite again after one update, but its residual is not.
    case = f"{bad} in {where} of sample {sample}"
    yield from unless(s.result[sample] == Result.nonfinite, f"{case}: {s.describe()}")
    yield from unless(s.num_steps[sample] == 0, f"{case}: it was given steps")
    yield from alike(f"{case}, others", s, healthy, torch.arange(len(x)) != sample)
    yield from unless(s.num_evals <= healthy.num_evals, f"{case}: more calls")


def a_diverging_sample_harms_no_other(solver: FixedPointSolver) -> Failures:
    """A diverging sample is not called converged, and the others end as without it."""
    f, inputs = draw(solver, 2)
    healthy = run(solver, f, *inputs)
    wild = torch.zeros(len(inputs[0]), 1, dtype=torch.float64)
    wild[3] = 1.0

    def g(y: Tensor, rate: Tensor, x: Tensor, wild: Tensor) -> Tensor:
        away = y + 1 if solver.linear else y + 1 + y.abs()
        return torch.where(wild > 0, away, f(y, rate, x))

    s = run(solver, g, *inputs, wild)
    others = torch.arange(len(wild)) != 3
    yield from unless(healthy.converged, healthy.describe())
    yield from unless(not s.converged[3], "called converged where there is no fixed point")
    yield from alike("others", s, healthy, others)


def work_follows_need(solver: FixedPointSolver) -> Failures:
    """Slow samples do not make `f` evaluate the fast ones, which leave the batch."""
    g = torch.Generator().manual_seed(0)
    rate = torch.full((100, 1), 0.3, dtype=torch.float64)
    rate[::10] = 0.97
    rate *= share(solver)
    x = torch.randn(100, width(solver, 8), generator=g, dtype=torch.float64)

    def h(y: Tensor, rate: Tensor, x: Tensor) -> Tensor:
        return rate * (y.roll(1, -1) if solver.linear else torch.sin(y.roll(1, -1))) + 0.1 * x

    few, all_rows = (
        solve(
            h, torch.zeros_like(x), rate, x, solver=dataclasses.replace(solver, rtol=1e-6),
            max_steps=budget(solver, 2000), compact=compact, throw=False,
        )
        for compact in (True, False)
    )  # fmt: skip
    yield from unless(few.converged, few.describe())
    yield from differ("value", few.value, all_rows.value, atol=1e-12)
    yield from equal("num_steps", few.num_steps, all_rows.num_steps)
    if not solver.promises.compacts:
        return
    every = 100 * all_rows.num_evals
    yield from unless(all_rows.rows_evaluated == every, "`compact=False` did not call on all rows")
    one_call = solver.promises.one_call
    most = 1.35 * int((few.num_steps + 1).sum()) if one_call else 0.8 * all_rows.rows_evaluated
    yield from unless(few.rows_evaluated <= most, f"{few.rows_evaluated} rows, at most {most:.0f}")


def leaving_the_batch_changes_no_answer(solver: FixedPointSolver, seed: int) -> Failures:
    """Easy, hard, unsolvable and NaN samples end alike with and without compaction."""
    f, (y0, rate, x) = draw(solver, seed, batch=9)
    rate[::3] *= 3
    # Enough easy ones that some leave early, whatever the seed.
    rate[1::3], x[4, 0] = 0.0, math.nan
    a, b = (run(solver, f, y0, rate, x, steps=60, compact=compact) for compact in (True, False))
    yield from equal("result", a.result, b.result)
    yield from equal("num_steps", a.num_steps, b.num_steps)
    if solver.promises.one_call:
        yield from unless(a.num_evals == b.num_evals, f"{a.num_evals} or {b.num_evals} calls")
    done = a.converged & b.converged
    yield from differ("value", a.value[done], b.value[done], rtol=0.0, atol=1e-12)
    fewer = a.rows_evaluated < b.rows_evaluated or solver.linear or not solver.promises.compacts
    yield from unless(fewer, "no row left the batch")


def a_stopped_sample_is_frozen(solver: FixedPointSolver) -> Failures:
    """Once a sample has stopped, `f` sees it at its value only."""
    f, inputs = draw(solver, 3)
    seen: list[Tensor] = []

    def watched(y: Tensor, rate: Tensor, x: Tensor) -> Tensor:
        seen.append(y.clone())
        return f(y, rate, x)

    s = run(solver, watched, *inputs, compact=False)
    yield from unless(s.converged, s.describe())
    if not solver.linear:  # A linear solver may end exactly after as many steps as entries.
        apart = s.num_steps.min() < s.num_steps.max()
        yield from unless(apart, "all samples took equally many steps")
    if len(seen[-1]) < len(s.value):
        return  # The solver calls `f` for one sample at a time.
    for i, steps in enumerate(s.num_steps.tolist()):
        for y in seen[steps:] if solver.promises.one_call else seen[-1:]:
            yield from equal(f"sample {i} after {steps} steps", y[i], s.value[i])


def the_inputs_are_left_alone(solver: FixedPointSolver) -> Failures:
    """Neither the solve nor writing into its value changes the inputs."""
    for compact in (True, False):
        f, inputs = draw(solver, 5)
        copies = [value.clone() for value in inputs]
        s = run(solver, f, *inputs, compact=compact)
        for name, value, copy in zip(("y0", "rate", "x"), inputs, copies, strict=True):
            yield from equal(name, value, copy)
        s.value.zero_()
        yield from equal("x, after the value was overwritten", inputs[2], copies[2])


def coupled_samples_without_args_have_no_stale_verdict(solver: FixedPointSolver) -> Failures:
    """Sample 0 converges early, and is moved later by sample 1: its verdict must be the last.

    A linear solver may give up, since the other sample changes the affine map that it has measured.
    """
    slow, fast = 0.9, 0.5 * share(solver, real=True)

    def g(y: Tensor) -> Tensor:
        return torch.stack((slow * y[1], fast * y[1] + 1))

    s = run(solver, g, torch.zeros(2, 1, dtype=torch.float64), steps=300)
    last = 1 / (1 - fast)
    yield from unless(s.converged | solver.linear, s.describe())
    expected = torch.tensor([slow * last, last], dtype=torch.float64)
    if s.converged.all():
        yield from differ("value", s.value.flatten(), expected)
    yield from differ("residual", s.residual, residual(g, s.value), atol=1e-12)


def coupled_samples_report_the_joint_residual_at_any_budget(
    solver: FixedPointSolver, seed: int
) -> Failures:
    """Residuals are true when samples influence each other by a map of radius above 1."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 6, generator=g, dtype=torch.float64)
    weight *= 1.1 / torch.linalg.eigvals(weight).abs().max()
    x = torch.randn(6, width(solver, 2), generator=g, dtype=torch.float64)

    def f(y: Tensor) -> Tensor:
        return (weight @ y if solver.linear else torch.tanh(weight @ y)) + x

    for max_steps in (6, 10, 15):
        chosen = dataclasses.replace(solver, rtol=1e-3)
        s = solve(f, torch.zeros_like(x), solver=chosen, max_steps=max_steps, throw=False)
        scale = f(s.value).square().mean(1).sqrt()
        yield from label(
            f"max_steps={max_steps}", honest(s, residual(f, s.value), scale, rtol=1e-3)
        )


def one_unbatched_state_has_one_verdict(solver: FixedPointSolver) -> Failures:
    """A state of shape (d,) with `batch_dims=0` is one problem, and not d scalar ones."""
    if width(solver, 2) < 2:
        return
    turn = torch.tensor([[0.0, 0.8], [-0.8, 0.0]], dtype=torch.float64) * share(solver)
    b = torch.ones(2, dtype=torch.float64)
    s = solve(
        lambda y: turn @ y + b, torch.zeros_like(b), solver=tight(solver), batch_dims=0,
        max_steps=budget(solver, 300), throw=False,
    )  # fmt: skip
    yield from unless(s.residual.shape == s.converged.shape == (), "verdicts have a batch")
    yield from unless(s.converged, s.describe())
    yield from differ("value", s.value, torch.linalg.solve(torch.eye(2) - turn, b))


def one_number_is_a_state(solver: FixedPointSolver) -> Failures:
    """A scalar tensor is solved: for the cosine, or its tangent for linear solvers."""
    y0, answer = torch.tensor(0.0, dtype=torch.float64), 0.7390851332
    slope = -math.sin(answer)
    s = solve(
        (lambda y: slope * (y - answer) + answer) if solver.linear else torch.cos, y0,
        solver=tight(solver), batch_dims=0, max_steps=budget(solver, 100), throw=False,
    )  # fmt: skip
    yield from unless(s.value.shape == (), f"shape {tuple(s.value.shape)}")
    if promised(solver, -slope, real=True, size=1):
        yield from unless(s.converged, s.describe())
        yield from differ("value", s.value, torch.tensor(answer), rtol=1e-6)


def a_tree_is_solved_like_the_tensor_of_its_parts(solver: FixedPointSolver) -> Failures:
    """A dict of two leaves has the steps and the value of the same state as one tensor."""
    if width(solver, 4) < 4:
        return
    f, (y0, rate, x) = draw(solver, 6)

    def split(y: Tensor) -> dict[str, Tensor]:
        return {"a": y[:, :1], "b": y[:, 1:].unflatten(1, (3, 1))}

    def g(y: dict[str, Tensor], rate: Tensor, x: Tensor) -> dict[str, Tensor]:
        return split(f(torch.cat((y["a"], y["b"].flatten(1)), 1), rate, x))

    whole, parts = run(solver, f, y0, rate, x), run(solver, g, split(y0), rate, x)
    yield from equal("num_steps", parts.num_steps, whole.num_steps)
    expected = split(whole.value)
    for key in expected:
        yield from differ(f"leaf {key}", parts.value[key], expected[key], atol=1e-12)


def trees_keep_structure_and_dtypes(solver: FixedPointSolver) -> Failures:
    """The value of a nested state has its structure, and the dtype of each leaf."""
    if width(solver, 3) < 3:
        return
    rate = 0.5 * share(solver, real=True)
    y0 = {"a": torch.zeros(3, 2), "b": (torch.zeros(3, dtype=torch.float64),)}

    def g(y: dict, x: Tensor) -> dict:
        return {"a": rate * y["a"] + x, "b": (rate * y["b"][0] + y["a"].double().sum(1),)}

    s = solve(g, y0, torch.ones(3, 2), solver=solver, throw=False, max_steps=budget(solver, 50))
    dtypes = (s.value["a"].dtype, s.value["b"][0].dtype)
    yield from unless(dtypes == (torch.float32, torch.float64), f"dtypes {dtypes}")
    yield from unless(s.converged, s.describe())
    expected = torch.full((3,), 2 / (1 - rate) ** 2, dtype=torch.float64)
    yield from differ("leaf b", s.value["b"][0], expected, atol=1e-3)
