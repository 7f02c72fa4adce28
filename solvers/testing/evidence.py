"""Helpers of the properties: comparisons that describe a failure, and checks of a solution.

A property is a generator function that yields a sentence for each failure. So one run lists all
failures, with or without a test framework.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from solvers.base import FixedPointSolver
from solvers.promises import Promises
from solvers.solution import Solution
from solvers.testing.problems import Problem, distance, leaves, residual, rms

Failures = Iterator[str]


def unless(holds: bool | Tensor, failure: str) -> Failures:
    """Yield the failure unless a condition holds; a tensor must hold for every sample."""
    if not bool(torch.as_tensor(holds).all()):
        yield failure


def differ(
    what: str, found: Tensor, expected: Tensor, *, rtol: float = 1e-5, atol: float = 1e-8
) -> Failures:
    """Yield a failure with the worst entry if two tensors are not close; NaN equals nothing."""
    if found.shape != expected.shape:
        yield f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    elif not torch.allclose(found, expected.to(found.dtype), rtol=rtol, atol=atol):
        gap = (found.double() - expected.double()).abs()
        worst = int(gap.nan_to_num(math.inf).argmax())
        yield (
            f"{what}: found {float(found.flatten()[worst]):.6g}, expected "
            f"{float(expected.flatten()[worst]):.6g} in entry {worst} of {found.numel()}"
        )


def equal(what: str, found: Tensor, expected: Tensor) -> Failures:
    """Yield a failure if two tensors are not equal."""
    if not torch.equal(found, expected):
        yield f"{what}: found {found.tolist()}, expected {expected.tolist()}"


def label(case: str, failures: Failures) -> Failures:
    """Prefix each failure with the case."""
    for failure in failures:
        yield f"{case}: {failure}"


def tight(solver: FixedPointSolver, rtol: float = 1e-9, atol: float = 1e-12) -> FixedPointSolver:
    """Return the same solver with tight tolerances."""
    return dataclasses.replace(solver, rtol=rtol, atol=atol)


def budget(solver: FixedPointSolver, steps: int) -> int:
    """Convert a number of Picard's steps to a budget for a solver, by its `pace`."""
    return math.ceil(steps / solver.promises.pace)


def promised(solver: FixedPointSolver, radius: float, *, real: bool, size: int) -> bool:
    """Whether a solver promises to solve maps of this spectral radius and size."""
    promises: Promises = solver.promises
    bound = max(promises.radius, promises.real_radius) if real else promises.radius
    return radius < bound and size <= (promises.size or size)


def share(solver: FixedPointSolver, *, real: bool = False) -> float:
    """Factor by which to scale a contraction so that the solver promises to solve it."""
    promises = solver.promises
    return min(1.0, max(promises.radius, promises.real_radius) if real else promises.radius)


def width(solver: FixedPointSolver, entries: int) -> int:
    """A number of entries, or fewer if the solver takes only smaller samples."""
    return min(entries, solver.promises.size or entries)


def counting(f: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """Wrap a map; also return a list to which each call appends its number of rows."""
    rows: list[int] = []

    def counted(y: Any, *args: Tensor) -> Any:
        rows.append(len(leaves(y)[0]))
        return f(y, *args)

    return counted, rows


def sound(s: Solution, p: Problem, rtol: float, atol: float) -> Failures:
    """Check that residuals are those at `value`, verdicts are true, and the value is near y*."""
    largest = 1 + max(float(leaf.abs().max()) for leaf in (*leaves(p.y_star), *leaves(s.value)))
    # The same row of f may be rounded differently in a batch of another size.
    rounding = 4 * torch.finfo(leaves(s.value)[0].dtype).eps * largest
    true = residual(p.f, s.value, *p.args)
    finite = s.residual.isfinite()
    yield from differ(
        "`residual` is not the one at `value`", s.residual.double()[finite], true[finite],
        rtol=1e-3, atol=rounding,
    )  # fmt: skip
    scale = rms(p.f(s.value, *p.args))
    within = true <= (atol + rtol * scale) * 1.001 + rounding
    yield from unless(within[s.converged], "a sample above the tolerance is called converged")
    if bool(s.converged.all()) and p.amplification * rounding < 0.1 * largest:
        bound = 2 * p.amplification * p.size**0.5 * (float(true.max()) + rounding)
        gap = distance(s.value, p.y_star)
        yield from unless(gap <= bound, f"converged {gap:.1e} from the answer, bound {bound:.1e}")


def honest(s: Solution, true: Tensor, scale: Tensor, rtol: float) -> Failures:
    """Check residuals of coupled samples against the true ones, and that verdicts are true."""
    yield from differ("`residual` is not the one at `value`", s.residual, true, atol=1e-12)
    within = true <= 1.01 * rtol * scale + 1e-8
    yield from unless(within[s.converged], "a sample above the tolerance is called converged")
