"""Warn once when a map in training stops contracting, with what was measured and what to do.

The warnings rest on validations, whose solves have the budget of evaluation: a training segment may
rightly end before its samples converge. Validations during the warm-up of the learning rate do not
count, since the map is then still close to its random initialisation. The monitor reads nothing
but rows of the log. A resumed run shows it the rows of its checkpoint again, so that it does not
repeat a warning.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from implicit import FixedPointLayer, JacobianFree, Neumann, Phantom, Unrolled
from solvers import Picard

Row = Mapping[str, float]

# Consecutive validations that must show a symptom. A single one means little: while a model learns
# how to solve its task, solves are often slow for a while.
SEVERAL = 3
# The share of solves, or of measured samples, that counts as most of them.
MOST = 0.5
# A symptom is a fall of the share that converges by FALL below its best value, or a growth of the
# residual by the factor GROWTH.
FALL, GROWTH = 0.25, 3.0
# Solvers to try in place of one that needs a contraction, in this order.
OTHERS = ("broyden", "anderson")


class ConvergenceMonitor:
    """Warns of solves that get worse: once for each symptom, and again only after it was gone.

    Args:
        model: Its first `FixedPointLayer` has the solver and the backward mode.
        config: The options of the run, which warnings refer to.
    """

    def __init__(self, model: nn.Module, config: Any):
        self.config = config
        layers = (layer for layer in model.modules() if isinstance(layer, FixedPointLayer))
        self.layer = next(layers, None)
        self.validations: list[Row] = []
        self.warned: set[str] = set()

    def read(self, row: Row) -> str | None:
        """Take note of a row of the log; return a warning if it shows a new symptom."""
        judged = self._is_judged and row["step"] > self.config.train.warmup
        if not judged or "test_converged" not in row:
            return None
        self.validations.append(row)
        symptoms = {
            "expanding": self._expanding(),
            "falling": self._falling(),
            "growing": self._growing(),
            "short": self._short(),
        }
        now = {name: text for name, text in symptoms.items() if text is not None}
        new = [text for name, text in now.items() if name not in self.warned]
        self.warned = set(now)
        if not new:
            return None
        parts = [f"Step {row['step']:.0f}:", *new]
        if set(now) - {"short"}:
            parts.append(self._recommendation(row))
        return " ".join(parts)

    @property
    def _is_judged(self) -> bool:
        """Whether solves should converge; published baselines take a fixed number of steps."""
        solver = self.layer and self.layer.solver
        return solver is not None and (solver.rtol > 0 or solver.atol > 0)

    def _expanding(self) -> str | None:
        if not self._lately(2, lambda row: row["test_expanding"] >= MOST):
            return None
        row = self.validations[-1]
        return (
            f"the map does not contract: df/dy has a spectral radius of {row['test_radius']:.2f} "
            f"where solves of held-out samples end, and {row['test_converged']:.0%} of them "
            "converge."
        )

    def _falling(self) -> str | None:
        best = max(row["test_converged"] for row in self.validations)
        if not self._lately(SEVERAL, lambda row: row["test_converged"] < best - FALL):
            return None
        return (
            f"{self.validations[-1]['test_converged']:.0%} of held-out samples converge, after "
            f"{best:.0%} before."
        )

    def _growing(self) -> str | None:
        if len(self.validations) <= SEVERAL:
            return None
        rows = self.validations[-SEVERAL - 1 :]
        then, now = rows[0], rows[-1]
        sizes = [row["test_residual"] for row in rows]
        grows = all(before < after for before, after in itertools.pairwise(sizes))
        far = now["test_converged"] < MOST and sizes[-1] > GROWTH * sizes[0]
        if not (grows and far and now["loss"] < then["loss"]):
            return None
        return (
            f"the loss falls, but residuals grow: the median of held-out samples is "
            f"{sizes[-1]:.1e}, after {sizes[0]:.1e} at step {then['step']:.0f}."
        )

    def _short(self) -> str | None:
        """Solves of training end too early, where the gradient takes their end for a fixed point.

        A sample with several segments, and backward modes that unroll steps, do not do so.
        """
        assert self.layer is not None
        if self.config.train.segments > 1 or isinstance(
            self.layer.backward_mode, Phantom | Unrolled
        ):
            return None
        if not self._lately(
            SEVERAL, lambda row: row["converged"] < MOST and row["test_converged"] >= 1 - FALL
        ):
            return None
        row = self.validations[-1]
        return (
            f"{row['converged']:.0%} of training samples converge, in {row['solver_steps']:.0f} "
            f"steps, but {row['test_converged']:.0%} of held-out ones, in {row['test_steps']:.0f}: "
            "the gradient is that of another point. Raise `--train-max-steps`."
        )

    def _lately(self, count: int, holds: Any) -> bool:
        rows = self.validations[-count:]
        return len(rows) == count and all(holds(row) for row in rows)

    def _recommendation(self, row: Row) -> str:
        if row["test_expanding"] < MOST:
            return self._how_to_converge(row)
        parts = [self._other_solver(row)]
        if isinstance(self.layer and self.layer.backward_mode, Phantom | Neumann | JacobianFree):
            parts.append(
                f"`--backward {self.config.solve.backward}` stands for a series in df/dy that does "
                "not converge there: compare with `--backward exact`."
            )
        parts.append(
            "If it gets worse, go back to the best checkpoint and lower `--learning-rate` or raise "
            "`--weight-decay`."
        )
        return " ".join(parts)

    def _other_solver(self, row: Row) -> str:
        name, real, radius = self.config.solve.solver, row["test_radius_real"], row["test_radius"]
        if row["test_converged"] >= MOST:
            return f"`{name}` finds them all the same; plain iteration would leave them."
        others = " or ".join(f"`--solver {other}`" for other in OTHERS if other != name)
        if real >= 1:
            return (
                f"Iterates run away: the eigenvalue has a real part of {real:.2f}, and damping "
                f"helps below 1 alone. A larger budget will not help either; {others} may."
            )
        damping, damped = _best_damping(real, radius)
        words = f"Iterates oscillate: the eigenvalue has a real part of {real:.2f}. "
        if hasattr(self.config.solve, "damping") and isinstance(
            self.layer and self.layer.solver, Picard
        ):
            words += f"`--damping {damping:.1f}` brings the radius to {damped:.2f}; {others} may do"
        else:
            words += f"{others} may do"
        return f"{words} without; a larger budget will not help."

    def _how_to_converge(self, row: Row) -> str:
        radius, residual = row["test_radius"], row["test_residual"]
        words = f"The map contracts (spectral radius {radius:.2f}), so that the budget of "
        words += f"{self.config.solve.eval_max_steps} steps is short"
        if self.config.solve.rtol < residual and 0 < radius < 1:
            more = math.log(self.config.solve.rtol / residual) / math.log(radius)
            words += f": plain iteration needs some {more:.0f} more"
        others = " or ".join(f"`--solver {o}`" for o in OTHERS if o != self.config.solve.solver)
        return (
            f"{words}. Raise `--eval-max-steps`, try {others}, or loosen `--rtol`; a lower "
            "`--learning-rate` keeps the map from drifting on."
        )


def _best_damping(real: float, radius: float) -> tuple[float, float]:
    """The damping d, in tenths, that minimises |d + (1 - d) lambda|, and that minimum."""
    distance = 1 - 2 * real + radius**2  # |1 - lambda|^2
    damping = min(max(math.ceil(10 * (1 - (1 - real) / distance)) / 10, 0.1), 0.9)
    kept = 1 - damping
    return damping, math.sqrt(max(1 - 2 * kept * (1 - real) + kept**2 * distance, 0))
