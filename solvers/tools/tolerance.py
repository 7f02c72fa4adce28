"""Find the cheapest tolerance and step budget at a stated loss of quality.

A small residual is only a means to a good answer. Given a quality of the answer, such as accuracy
or minus a loss, let q(t) be its mean over the samples, all solved to the relative tolerance t. From
a grid of tolerances, with the tightest as the reference r, choose the loosest t with

    q(t') >= q(r) - loss    for t' = t and for every tighter t' of the grid,

since a quality need not be monotone in t, and may be good by chance at a loose tolerance. The step
budget is then found at that tolerance, by the same rule over 0, 1, 2, 4, 8, ... updates. Every
number is measured in a real solve. The paper on Attractor Models (arXiv:2605.12466) does not say
how tightly to solve; the rule is ours.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from solvers.base import FixedPointSolver
from solvers.packing import StatePacking
from solvers.registry import SOLVERS
from solvers.solution import Solution, raise_if_failed
from solvers.solve import solve
from solvers.tools.benchmark import kept_random_state
from solvers.tools.tuning import aligned
from solvers.types import Map, State

Quality = Callable[[State], Tensor | float]
RTOLS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A tolerance and a budget, and the results of a solve with them.

    Attributes:
        rtol: Relative tolerance.
        max_steps: Budget of updates.
        quality: Mean quality over the samples.
        converged: Share of the samples within the tolerance.
        num_steps: Updates that the slowest sample received.
        rows_evaluated: Rows that `f` saw: the cost, as stopped samples leave the batch.
        fits: Whether the quality is within the permitted loss.
    """

    rtol: float
    max_steps: int
    quality: float
    converged: float
    num_steps: int
    rows_evaluated: int
    fits: bool

    def cells(self) -> tuple[str, ...]:
        """The row for a printed table."""
        share = f"{math.floor(1000 * self.converged) / 10:g} %"
        verdict = "within the loss" if self.fits else "too much lost"
        numbers = f"{self.max_steps}", f"{self.quality:.5g}", share, f"{self.rows_evaluated}"
        return (f"{self.rtol:.0e}", *numbers, verdict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToleranceAdvice:
    """The cheapest setting, and the evidence.

    Attributes:
        solver: The solver at the tolerance found, for `solve` and `implicit.fixed_point`.
        max_steps: The budget found; the whole budget if no power of two below the steps that the
            tolerance needs is enough.
        chosen: The setting found, as it was measured.
        reference: The setting of the tightest tolerance and the whole budget.
        loss: The permitted loss of quality.
        table: All settings tried: the tolerances, loosest first, then the budgets.
        num_evals: Calls of `f` that the search took, exactly.
    """

    solver: FixedPointSolver
    max_steps: int
    chosen: Setting
    reference: Setting
    loss: float
    table: tuple[Setting, ...]
    num_evals: int

    @property
    def saving(self) -> float:
        """Share of the reference's work that the advice saves."""
        return 1 - self.chosen.rows_evaluated / max(self.reference.rows_evaluated, 1)

    def __str__(self) -> str:
        header = ("rtol", "max_steps", "quality", "converged", "rows", "verdict")
        lost = self.reference.quality - self.chosen.quality
        return "\n".join(
            [
                *aligned([header, *(setting.cells() for setting in self.table)]),
                f"rtol={self.chosen.rtol:g} with max_steps={self.max_steps} loses {lost:.2g} of "
                f"quality ({self.loss:g} permitted) and saves {self.saving:.0%} of the work of "
                f"rtol={self.reference.rtol:g}.",
            ]
        )


@torch.no_grad()
def cheapest_tolerance(
    f: Map,
    y0: State,
    *args: Any,
    quality: Quality,
    loss: float,
    solver: str | FixedPointSolver = "anderson",
    rtols: Iterable[float] = RTOLS,
    max_steps: int = 200,
    batch_dims: int = 1,
    throw: bool = True,
) -> ToleranceAdvice:
    """Find the loosest tolerance and smallest budget that lose at most `loss` of quality.

    Cost: one solve per tolerance, and one per power of two up to the updates needed. Measure on
    samples that you do not report on: the advice is fitted to them. Every solve starts from the
    caller's random state, which is restored, so that settings differ in nothing else.

    Args:
        f: See `solve`.
        y0: See `solve`; at least one sample.
        *args: See `solve`.
        quality: Called with a solution's value, of `y0`'s structure; returns a number or a tensor
            of shape `(*batch,)`, higher is better.
        loss: What the mean quality may lose against the reference, in its own units, at least 0.
        solver: The solver to find a tolerance for; `atol` and other options do not change.
        rtols: The tolerances to try, above 0, in any order; the tightest is the reference.
        max_steps: Budget of the reference.
        batch_dims: See `solve`.
        throw: Raise if the reference did not converge; otherwise use the point it reached.

    Returns:
        A `ToleranceAdvice`; print it for the table.

    Raises:
        SolveError: A sample of the reference failed and `throw` is True.
        ValueError: A bad loss, tolerance or name, no samples, or a quality of another shape or
            that is not finite.
        TypeError: `rtols` or what `quality` returned are no real numbers; or as `solve`.

    Example:
        >>> # The solution is 1. Any y above 0.3 counts as right, so a loose tolerance will do.
        >>> f = lambda y: 0.5 * y + 0.5
        >>> right = lambda y: (y[:, 0] > 0.3).float()
        >>> advice = cheapest_tolerance(f, torch.zeros(4, 1), quality=right, loss=0.01)
        >>> advice.chosen.rtol, advice.max_steps
        (0.1, 1)
    """
    tolerances = _checked(loss, rtols)
    chosen = SOLVERS.resolve(solver)
    packing = StatePacking(y0, batch_dims)
    if not packing.num_samples:
        raise ValueError(f"`y0` has no samples to measure: batch shape {(*packing.batch_shape,)}.")
    solutions: list[Solution] = []

    def measure(rtol: float, budget: int, floor: float) -> Setting:
        at = dataclasses.replace(chosen, rtol=rtol)
        with kept_random_state(packing.device):
            s = solve(f, y0, *args, solver=at, max_steps=budget, batch_dims=batch_dims, throw=False)
            mean = _mean(quality(s.value), packing)
        solutions.append(s)
        return Setting(
            rtol=rtol,
            max_steps=budget,
            quality=mean,
            converged=s.converged.double().mean().item(),
            num_steps=int(s.num_steps.max()),
            rows_evaluated=s.rows_evaluated,
            fits=mean >= floor,
        )

    reference = measure(tolerances[-1], max_steps, -math.inf)
    if throw:
        raise_if_failed(solutions[0], bool(args))
    floor = reference.quality - loss
    by_rtol = [measure(rtol, max_steps, floor) for rtol in tolerances[:-1]]
    loosest = _loosest([*by_rtol, reference])
    budgets = [0, *(2**i for i in range(loosest.num_steps.bit_length()))]
    by_budget = [measure(loosest.rtol, n, floor) for n in budgets if n < loosest.num_steps]
    best = _loosest([*by_budget, loosest])
    return ToleranceAdvice(
        solver=dataclasses.replace(chosen, rtol=best.rtol),
        max_steps=best.max_steps,
        chosen=best,
        reference=reference,
        loss=loss,
        table=(*by_rtol, reference, *by_budget),
        num_evals=sum(s.num_evals for s in solutions),
    )


def _loosest(settings: list[Setting]) -> Setting:
    """The loosest setting such that it and all tighter ones fit; `settings` begin loosest."""
    best = settings[-1]
    for setting in reversed(settings):
        if not setting.fits:
            break
        best = setting
    return best


def _checked(loss: float, rtols: Iterable[float]) -> list[float]:
    """Check the options, and return the tolerances in order from the loosest."""
    if not (isinstance(loss, int | float) and math.isfinite(loss) and loss >= 0):
        raise ValueError(f"`loss` must be finite and at least 0, got {loss!r}.")
    try:
        tolerances = sorted({float(rtol) for rtol in rtols}, reverse=True)
    except (TypeError, ValueError):
        advice = "Give several numbers, such as (1e-1, 1e-2, 1e-3)."
        raise TypeError(f"`rtols` must be numbers, got {rtols!r}. {advice}") from None
    if not tolerances or not all(math.isfinite(rtol) and rtol > 0 for rtol in tolerances):
        raise ValueError(f"`rtols` must be positive and at least one, got {tolerances!r}.")
    return tolerances


def _mean(quality: Tensor | float, packing: StatePacking) -> float:
    """Check a quality, and return its mean over the samples."""
    real = isinstance(quality, Tensor | SupportsFloat)
    if not real or torch.as_tensor(quality).is_complex():
        raise TypeError(f"`quality` must return a real number or a tensor, got {quality!r}.")
    measured = torch.as_tensor(quality, dtype=torch.float64)
    if measured.shape not in (torch.Size(), packing.batch_shape):
        raise ValueError(
            "`quality` must return a number or a tensor of one number per sample, of shape "
            f"{(*packing.batch_shape,)}: got shape {tuple(measured.shape)}."
        )
    mean = measured.mean().item()
    if not math.isfinite(mean):
        raise ValueError(
            f"`quality` must be finite, got {mean} on average. Give samples that failed the "
            "lowest quality there is, such as 0 for accuracy."
        )
    return mean
