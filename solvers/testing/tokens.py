"""Properties of each token under `batch_dims=2`."""

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from solvers.base import FixedPointSolver
from solvers.solve import solve
from solvers.testing.evidence import (
    Failures,
    budget,
    differ,
    equal,
    honest,
    label,
    share,
    tight,
    unless,
    width,
)
from solvers.testing.samples import draw


def _of_tokens(prop: Callable[..., Failures]) -> Callable[..., Failures]:
    """Restrict a property to solvers that take tokens; others must refuse `batch_dims=2`."""

    @functools.wraps(prop)
    def wrapped(solver: FixedPointSolver, *drawn: int, **given: int) -> Failures:
        if solver.promises.tokens:
            yield from prop(solver, *drawn, **given)
            return
        y0 = torch.zeros(1, 2, 1)
        try:
            solve(lambda y, x: 0.5 * y, y0, y0, solver=solver, batch_dims=2)
        except ValueError:
            return
        yield "promises no tokens, but does not refuse `batch_dims=2`"

    return wrapped


@_of_tokens
def rows_without_tokens_keep_their_shape(solver: FixedPointSolver) -> Failures:
    """Rows without tokens have a value and verdicts of the right shape."""
    y0 = torch.zeros(3, 0, 4)
    s = solve(lambda y: 0.5 * y, y0, solver=solver, batch_dims=2)
    shapes = [tuple(s.residual.shape), tuple(s.value.shape)]
    yield from unless(shapes == [(3, 0), (3, 0, 4)], f"shapes {shapes}")


@_of_tokens
def tokens_have_verdicts_of_their_own(solver: FixedPointSolver) -> Failures:
    """Tokens that a map does not couple are solved as if each were a sample."""
    f, flat = draw(solver, 4, batch=12)
    inputs = [value.unflatten(0, (3, 4)) for value in flat]
    alone, tokens = (
        solve(
            f, *given, solver=tight(solver), max_steps=budget(solver, 200), batch_dims=dims,
            throw=False,
        )
        for given, dims in ((flat, 1), (inputs, 2))
    )  # fmt: skip
    shapes = [tuple(s.shape) for s in (tokens.residual, tokens.result)]
    yield from unless(shapes == [(3, 4), (3, 4)], f"shapes {shapes}")
    yield from equal("num_steps", tokens.num_steps.flatten(), alone.num_steps)
    yield from equal("result", tokens.result.flatten(), alone.result)
    yield from differ("value", tokens.value.flatten(0, 1), alone.value, atol=1e-12)


def causal_x(solver: FixedPointSolver) -> Tensor:
    """Draw the input of a causal map: three rows of five tokens."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 5, width(solver, 2), generator=generator, dtype=torch.float64)


@_of_tokens
def coupled_tokens_report_the_joint_residual(solver: FixedPointSolver) -> Failures:
    """Residuals are true for a map in which each token depends on those before it."""
    x, rate = causal_x(solver), 0.8 * share(solver, real=True)

    def causal(y: Tensor, x: Tensor) -> Tensor:
        mean = y.cumsum(1) / 3
        return rate * (mean if solver.linear else torch.tanh(mean)) + x

    s = solve(
        causal, x, x, solver=tight(solver), max_steps=budget(solver, 400), batch_dims=2,
        throw=False,
    )  # fmt: skip
    true = (causal(s.value, x) - s.value).square().mean(-1).sqrt()
    yield from differ("residual", s.residual, true, atol=1e-12)


@_of_tokens
def coupled_tokens_report_the_joint_residual_at_any_budget(
    solver: FixedPointSolver, seed: int, max_steps: int | None = None
) -> Failures:
    """Residuals are true also for a causal map that may not be a contraction."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 5, generator=g, dtype=torch.float64).tril()
    x = torch.randn(3, 5, width(solver, 2), generator=g, dtype=torch.float64)
    steps = 5 * seed % 31 if max_steps is None else max_steps

    def causal(y: Tensor, x: Tensor) -> Tensor:
        return (weight @ y if solver.linear else torch.tanh(weight @ y)) + x

    for compact in (True, False):
        s = solve(
            causal, torch.zeros_like(x), x, solver=dataclasses.replace(solver, rtol=1e-3),
            max_steps=steps, batch_dims=2, throw=False, compact=compact,
        )  # fmt: skip
        fy = causal(s.value, x)
        true, scale = ((t.square().mean(-1).sqrt()) for t in (fy - s.value, fy))
        yield from label(f"max_steps={steps}, {compact=}", honest(s, true, scale, rtol=1e-3))


@_of_tokens
def a_broken_token_harms_neither_other_rows_nor_earlier_tokens(
    solver: FixedPointSolver,
) -> Failures:
    """NaN in one token makes it and the later ones of its row `nonfinite`, and no others."""
    x, rate = causal_x(solver), 0.5 * share(solver, real=True)

    def causal(y: Tensor, x: Tensor) -> Tensor:
        mean = y.cumsum(1) / 3
        return rate * (mean if solver.linear else torch.tanh(mean)) + x

    broken = x.clone()
    broken[1, 2, 0] = float("nan")
    a, b = (
        solve(
            causal, given, given, solver=tight(solver), batch_dims=2, throw=False,
            max_steps=budget(solver, 50),
        )
        for given in (x, broken)
    )  # fmt: skip
    yield from differ("value of other rows", b.value[::2], a.value[::2], rtol=0.0, atol=1e-12)
    yield from equal("num_steps of other rows", b.num_steps[::2], a.num_steps[::2])
    yield from differ("value of earlier tokens", b.value[1, :2], a.value[1, :2])
    expected = torch.tensor([0, 0, 3, 3, 3], dtype=b.result.dtype)
    yield from equal("result of its row", b.result[1], expected)


@_of_tokens
def no_token_sees_what_follows_or_other_rows(
    solver: FixedPointSolver, seed: int, max_steps: int | None = None
) -> Failures:
    """A token of a causal map does not change with later tokens or other rows."""
    g = torch.Generator().manual_seed(seed)
    strength = 1 + seed % 8
    weight = strength * torch.randn(4, 4, generator=g, dtype=torch.float64).tril()
    x = torch.randn(3, 4, width(solver, 2), generator=g, dtype=torch.float64)
    # Few steps: the map is no contraction, so that differences in rounding grow at every step.
    steps = seed % 7 if max_steps is None else max_steps

    def causal(y: Tensor, x: Tensor) -> Tensor:
        mixed = [(weight[i, : i + 1, None] * y[:, : i + 1]).sum(1) for i in range(y.shape[1])]
        z = torch.stack(mixed, 1)
        return (z if solver.linear else z / (1 + z.abs())) + x

    def first_tokens(x: Tensor) -> list[Tensor]:
        s = solve(
            causal, 0 * x, x, solver=dataclasses.replace(solver, rtol=1e-3), max_steps=steps,
            batch_dims=2, throw=False,
        )  # fmt: skip
        return [s.value[0, :2], s.residual[0, :2], s.result[0, :2], s.num_steps[0, :2]]

    other = x.clone()
    other[0, 2:] = 3 * torch.randn(2, x.shape[2], generator=g, dtype=torch.float64)
    cases = ("what follows", other), ("other rows", x[:1]), ("none behind", x[:, :2])
    for what, changed in cases:
        for a, b in zip(first_tokens(x), first_tokens(changed), strict=True):
            yield from label(f"{steps=}, {strength=}, {what}", differ("token", b, a))
    alone = first_tokens(x[:, :1])
    for a, b in zip(first_tokens(x), alone, strict=True):
        yield from label(f"{steps=}, {strength=}, alone", differ("token", b, a[:1]))
