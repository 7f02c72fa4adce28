"""A solver that shows its books after every step, so that a sample can leave before the others."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch

from solvers.base import Evaluation, FixedPointSolver
from solvers.ledger import Ledger
from solvers.solution import Solution
from solvers.types import Flat, Index


@final
@dataclass(frozen=True, kw_only=True)
class Supervised(FixedPointSolver):
    """Another solver, step by step the same, with somebody who watches.

    Args:
        rtol: As in `FixedPointSolver`; `around` takes it from the other solver.
        atol: Likewise.
        inner: The solver.
        after_step: Called with the ledger after every step but the last; may end samples with
            `ledger.stop`.
    """

    inner: FixedPointSolver
    after_step: Callable[[Ledger], None]

    @classmethod
    def around(cls, inner: FixedPointSolver, after_step: Callable[[Ledger], None]) -> "Supervised":
        """Watch a solver."""
        return cls(rtol=inner.rtol, atol=inner.atol, inner=inner, after_step=after_step)

    def init(self, y: Flat) -> Any:
        """As the solver does."""
        return self.inner.init(y)

    def begin(
        self, y: Flat, f: Evaluation, ledger: Ledger
    ) -> contextlib.AbstractContextManager[Any]:
        """As the solver does."""
        return self.inner.begin(y, f, ledger)

    def step(self, y: Flat, fy: Flat, carry: Any) -> tuple[Flat, Any]:
        """As the solver does."""
        return self.inner.step(y, fy, carry)

    def move(self, y: Flat, fy: Flat, carry: Any, f: Evaluation) -> tuple[Flat, Any]:
        """As the solver does."""
        return self.inner.move(y, fy, carry, f)

    def advance(self, y: Flat, y_next: Flat, carry: Any, ledger: Ledger) -> Flat:
        """As the solver does, and then show the books."""
        points = self.inner.advance(y, y_next, carry, ledger)
        self.after_step(ledger)
        return points

    def keep(self, carry: Any, samples: Index) -> Any:
        """As the solver does."""
        return self.inner.keep(carry, samples)


def stopped(ledger: Ledger, known: set[int]) -> Iterator[tuple[int, Solution]]:
    """The samples that have ended, but for the known ones, each with the solution of its own.

    For states with one sample a row. Adds them to `known`.
    """
    count = len(ledger.result)
    index = ledger.index if ledger.index is not None else torch.arange(count)
    present = (index, ledger.value, ledger.norm, ledger.result, ledger.num_steps)
    for samples, value, norm, result, num_steps in (*ledger.retired, present):
        numbers = zip(samples.tolist(), result.tolist(), strict=True)
        for row, (sample, code) in enumerate(numbers):
            if code < 0 or sample in known:
                continue
            known.add(sample)
            one = slice(row, row + 1)
            yield (
                sample,
                Solution(
                    value=ledger.layout.unpack(value[one]),
                    residual=norm[one] / ledger.root,
                    result=result[one],
                    num_steps=num_steps[one].clone(),
                    num_evals=0,
                    rows_evaluated=0,
                ),
            )
