"""Properties of the answer: a solver finds it or says that it did not, at any budget or scale."""

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from solvers.base import FixedPointSolver
from solvers.solution import Result, Solution
from solvers.solve import solve
from solvers.testing.evidence import (
    Failures,
    budget,
    counting,
    differ,
    equal,
    label,
    promised,
    share,
    sound,
    tight,
    unless,
    width,
)
from solvers.testing.problems import PROBLEMS, Problem, distance, leaves, linear, residual

TOLERANCES = {
    torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2,
}  # fmt: skip


def problems_of(solver: FixedPointSolver) -> Iterator[Problem]:
    """Return the problems for a solver: all of the zoo, or its affine maps for a linear solver."""
    return (p for p in PROBLEMS if p.affine or not solver.linear)


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its package."""
    return str(dtype).removeprefix("torch.")


def reaches_the_answer_or_says_that_it_did_not(solver: FixedPointSolver) -> Failures:
    """Verdicts and counts are right on every problem, dtype and batch size."""
    for problem in problems_of(solver):
        for dtype in TOLERANCES:
            for rows in (1, 3, 17):
                case = f"{problem.name}, {name_of(dtype)}, {rows} rows"
                yield from label(case, _one_problem(solver, problem.to(dtype, rows), dtype))


def _one_problem(solver: FixedPointSolver, p: Problem, dtype: torch.dtype) -> Failures:
    rtol, wide = TOLERANCES[dtype], dtype == torch.float64
    f, seen = counting(p.f)
    max_steps = budget(solver, 3000 if wide else 1000)
    chosen = tight(solver, rtol)
    s = solve(f, p.y0, *p.args, solver=chosen, max_steps=max_steps, throw=False)
    yield from sound(s, p, rtol, 1e-12)
    yield from unless(s.num_evals == len(seen), f"num_evals {s.num_evals}, calls {len(seen)}")
    rows = s.rows_evaluated
    yield from unless(rows == sum(seen), f"rows_evaluated {rows}, rows seen {sum(seen)}")
    yield from unless(s.num_steps <= max_steps, "more steps than the budget")
    kept = all(leaf.dtype == dtype for leaf in leaves(s.value))
    yield from unless(kept, "`value` has another dtype")
    judged = torch.float64 if wide else torch.float32
    yield from unless(s.residual.dtype == judged, f"`residual` has dtype {s.residual.dtype}")
    if promised(solver, p.radius, real=p.real, size=p.size) and (
        wide or (dtype == torch.float32 and p.radius < 0.95)
    ):
        yield from unless(s.converged, s.describe())


def residual_is_that_of_the_rounded_state(solver: FixedPointSolver) -> Failures:
    """Iterates are computed in float32, but judged after rounding to the state's dtype."""
    for dtype in (torch.bfloat16, torch.float16):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(3, width(solver, 8), generator=generator).to(dtype)

        def f(y: Tensor, x: Tensor) -> Tensor:
            return 0.8 * (y.roll(1, -1) if solver.linear else torch.tanh(y.roll(1, -1))) + x

        for max_steps in range(1, 7):
            s = solve(f, 0 * x, x, solver=tight(solver, 1e-6), max_steps=max_steps, throw=False)
            yield from differ(
                f"{name_of(dtype)}, max_steps={max_steps}", s.residual.double(),
                residual(f, s.value, x), atol=0.0,
            )  # fmt: skip


def the_slowest_sample_sets_the_number_of_evaluations(solver: FixedPointSolver) -> Failures:
    """`f` is called once per step of the slowest sample, and once at the start."""
    p = linear(0.9 * share(solver, real=True), normal=True)
    s = solve(p.f, p.y0, *p.args, solver=solver, max_steps=budget(solver, 500), throw=False)
    most = int(s.num_steps.max()) + 1
    exact = s.num_evals == most if solver.promises.one_call else s.num_evals >= most
    yield from unless(exact, f"{s.num_evals} calls for {most - 1} steps")


def every_small_budget_makes_progress_and_tells_the_truth(solver: FixedPointSolver) -> Failures:
    """The error falls with the budget; a published puzzle solver still has 100 % after 6 steps."""
    radius = 0.5 * share(solver, real=True)
    p = linear(radius, normal=True)
    start, gap = residual(p.f, p.y0, *p.args), distance(p.y0, p.y_star)
    for max_steps in range(budget(solver, 2 * getattr(solver, "history", 5) + 1)):
        f, seen = counting(p.f)
        s = solve(f, p.y0, *p.args, solver=solver, max_steps=max_steps, throw=False)
        error = distance(s.value, p.y_star)
        bound = radius ** (solver.promises.pace * max_steps) * gap * 4 + 1e-4
        case = f"max_steps={max_steps}"
        if p.size <= (solver.promises.size or p.size):
            yield from unless(error <= bound, f"{case}: error {error:.1e} above {bound:.1e}")
        yield from differ(f"{case}: residual", s.residual, residual(p.f, s.value, *p.args))
        yield from unless(s.residual <= start * (1 + 1e-12), f"{case}: worse than the start")
        yield from unless(s.num_steps <= max_steps, f"{case}: more steps than the budget")
        counted = s.num_evals == len(seen)
        yield from unless(counted, f"{case}: num_evals {s.num_evals}, calls {len(seen)}")
        few = s.num_evals <= max_steps + 1 or not solver.promises.one_call
        yield from unless(few, f"{case}: {s.num_evals} calls")


def no_budget_returns_a_point_worse_than_the_start(solver: FixedPointSolver) -> Failures:
    """The value is no worse than the start, also where the residual grows before it falls."""
    for normal in (True, False):
        p = linear(0.99, normal=normal)
        start = residual(p.f, p.y0, *p.args)
        for max_steps in range(11):
            s = solve(p.f, p.y0, *p.args, solver=solver, max_steps=max_steps, throw=False)
            true = residual(p.f, s.value, *p.args)
            case = f"{p.name}, max_steps={max_steps}"
            yield from differ(f"{case}: residual", s.residual, true)
            yield from unless(true <= start * (1 + 1e-12), f"{case}: worse than the start")


def no_steps_return_the_start(solver: FixedPointSolver) -> Failures:
    """A budget of 0 costs one call, returns the start, and reports `max_steps`."""
    p = linear(0.5, normal=True)
    s = solve(p.f, p.y0, *p.args, solver=solver, max_steps=0, throw=False)
    yield from unless(torch.equal(s.value, p.y0), "`value` is not the start")
    yield from unless(s.num_evals == 1, f"{s.num_evals} calls instead of 1")
    yield from equal("result", s.result, torch.full_like(s.result, Result.max_steps))


def divergence_is_reported_and_the_best_point_returned(solver: FixedPointSolver) -> Failures:
    """On a map without a fixed point no sample converges, and none ends worse than it began."""
    y0 = torch.full((3, 4), 5.0, dtype=torch.float64)
    x = torch.ones_like(y0)

    def f(y: Tensor, x: Tensor) -> Tensor:
        # The residual is at least x = 1.
        return y + x if solver.linear else y + y.abs() + x

    s = solve(f, y0, x, solver=solver, max_steps=60, throw=False)
    yield from unless(~s.converged, "called converged where there is no fixed point")
    yield from differ("residual", s.residual, residual(f, s.value, x))
    yield from unless(s.residual <= residual(f, y0, x) + 1e-12, "worse than the start")


def infinite_values_never_count_as_converged(solver: FixedPointSolver) -> Failures:
    """Infinite values are `nonfinite`, although inf <= rtol * inf holds."""
    s = solve(lambda y: y * math.inf, torch.ones(2, 3), solver=solver, throw=False)
    yield from equal("result", s.result, torch.full_like(s.result, Result.nonfinite))


def a_broken_start_is_named_as_such(solver: FixedPointSolver) -> Failures:
    """NaN or an infinity in `y0` makes that sample `nonfinite`, and no other sample fails."""
    for bad in (math.nan, math.inf):
        y0 = torch.zeros(10, 3)
        y0[4, 1] = bad
        s = solve(
            lambda y: 0.5 * share(solver, real=True) * y + 1, y0, solver=solver, throw=False,
            max_steps=budget(solver, 50),
        )  # fmt: skip
        yield from equal(f"failed samples, {bad}", (~s.converged).nonzero(), torch.tensor([[4]]))
        yield from unless(s.result[4] == Result.nonfinite, f"{bad}: {s.describe()}")


def noise_floor_is_recognised_long_before_the_budget(solver: FixedPointSolver) -> Failures:
    """A map that is only accurate to bfloat16, as under autocast, does not use up the budget."""
    noise = solver.promises.noise
    size = width(solver, 32)
    x = torch.randn(4, size, generator=torch.Generator().manual_seed(0))

    def f(y: Tensor, x: Tensor) -> Tensor:
        return (0.5 * share(solver) * (y if solver.linear else torch.tanh(y * 3)) + x).bfloat16()

    chosen = dataclasses.replace(solver, rtol=1e-7, atol=0.0, **noise or {})
    s = solve(
        lambda y, x: f(y, x).float(), torch.zeros_like(x), x, solver=chosen, max_steps=2000,
        throw=False,
    )  # fmt: skip
    if noise is None:
        return
    if solver.promises.one_call:
        yield from unless(s.num_evals < budget(solver, 200), f"{s.num_evals} calls")
    else:  # A step costs many calls, and Newton's method tries several phases.
        most = int(s.num_steps.max())
        yield from unless(most < budget(solver, 400), f"{most} steps")
    yield from unless(s.residual < 1e-1, f"residual {float(s.residual.max()):.1e}")


def no_scale_breaks_the_verdict(solver: FixedPointSolver) -> Failures:
    """Verdicts are right at scales where squares underflow to 0 or overflow to inf."""
    single, double = torch.float32, torch.float64
    scales = {single: (1e-30, 1e-25, 1e20, 1e30), double: (1e-165, 1e160)}
    rate = 0.5 * share(solver, real=True)
    for dtype in scales:
        for scale in scales[dtype]:
            x = torch.full((2, width(solver, 3)), scale, dtype=dtype)
            s = solve(
                lambda y, x: rate * y + x, 0 * x, x, solver=dataclasses.replace(solver, atol=0.0),
                throw=False, max_steps=budget(solver, 50),
            )  # fmt: skip
            case = f"scale {scale:g}, {name_of(dtype)}"
            yield from unless(s.converged, f"{case}: {s.describe()}")
            expected = torch.full_like(x, 1 / (1 - rate))
            yield from differ(f"{case}: value / scale", s.value / scale, expected, rtol=1e-3)


def already_solved_costs_one_evaluation(solver: FixedPointSolver) -> Failures:
    """A start within tolerance is returned after one call of `f`."""
    p = linear(0.9, normal=True)
    s = solve(p.f, p.y_star, *p.args, solver=solver, throw=False)
    yield from unless(s.converged, s.describe())
    yield from unless(s.num_evals == 1, f"{s.num_evals} calls")
    yield from unless(torch.equal(s.value, p.y_star), "`value` is not the start")


def an_empty_batch_stays_empty(solver: FixedPointSolver) -> Failures:
    """A batch of no samples is returned without a call of `f`; samples of no entries converge."""
    empty = torch.zeros(0, 3)
    s = solve(lambda y, x: y + x, empty, empty, solver=solver)
    shapes = [tuple(t.shape) for t in (s.value, s.residual, s.num_steps)]
    yield from unless(shapes == [(0, 3), (0,), (0,)], f"shapes {shapes}")
    yield from unless(s.num_evals == 0, f"{s.num_evals} calls")
    hollow = solve(lambda y: 0.5 * y, torch.zeros(2, 0), solver=solver, throw=False)
    yield from unless(hollow.converged, hollow.describe())


def nothing_is_recorded(solver: FixedPointSolver) -> Failures:
    """The value has no graph, although an argument requires a gradient."""
    p = linear(0.5, normal=True)
    s: Solution = solve(p.f, p.y0, p.args[0].clone().requires_grad_(), solver=solver, throw=False)
    yield from unless(not s.value.requires_grad, "`value` has a graph")


def a_map_that_reuses_memory_is_never_falsely_converged(solver: FixedPointSolver) -> Failures:
    """A map that overwrites its input or output is solved, refused, or reported as failed."""
    rate, buffer = 0.5 * share(solver, real=True), torch.empty(2, 3)

    def in_place(y: Tensor) -> Tensor:
        return y.mul_(rate).add_(1)

    def one_buffer(y: Tensor) -> Tensor:
        return torch.add(torch.ones(2, 3), y, alpha=rate, out=buffer)

    for f in (in_place, one_buffer):
        y0 = torch.zeros(2, 3)
        try:
            s = solve(f, y0, solver=solver, throw=False)
        except (RuntimeError, ValueError):
            continue
        gap = (rate * s.value + 1 - s.value).abs().amax(1)
        yield from unless((gap < 1e-3)[s.converged], f"{f.__name__}: falsely converged")
        yield from equal(f"{f.__name__}: start", y0, torch.zeros(2, 3))


def a_map_that_takes_gradients_leaves_no_graph_behind(solver: FixedPointSolver) -> Failures:
    """A map that differentiates an energy returns a graph; iterates and value carry none of it."""
    if not solver.promises.one_call or solver.linear:
        return  # It differentiates `f` itself, or expects an affine map.
    slope = 0.3 * share(solver, real=True)
    theta = torch.tensor(slope, dtype=torch.float64, requires_grad=True)
    attached = []

    def f(y: Tensor) -> Tensor:
        attached.append(y.requires_grad)
        with torch.enable_grad():
            z = y if y.requires_grad else y.detach().requires_grad_()
            energy = (0.5 * z.square() + theta * z.cos() - z).sum()
            return z - torch.autograd.grad(energy, z, create_graph=True)[0]

    y0 = torch.zeros(width(solver, 3), dtype=torch.float64)
    s = solve(f, y0, solver=solver, batch_dims=0, max_steps=budget(solver, 50), throw=False)
    yield from unless(s.converged, s.describe())
    expected = 1 + theta.detach() * s.value.sin()
    yield from differ("the least energy", s.value, expected, atol=1e-4)
    yield from unless(not any(attached), "`f` was given a point with a graph")
    yield from unless(not s.value.requires_grad, "`value` has a graph")
