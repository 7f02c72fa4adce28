"""Broyden's good method with restarts, which stores nothing but its steps.

With g(y) = f(y) - y, an estimate H of (dg/dy)^-1 and the steps s_k = -H_k g(y_k), Broyden's
update multiplies H from the left by a matrix of two consecutive steps:

    H_{k+1} = (I + s_{k+1} s_k^T / d_k) H_k,     d_k = s_k^T s_k,     H_0 = -I

so -H g is a sum of steps whose coefficients a_0 .. a_k solve one triangular system per sample,

    d_i a_i - sum_{j<i} (s_i^T s_{j+1}) a_j = s_i^T g,     p = g + sum_{j<k} a_j s_{j+1}

where p = -H_k g(y_{k+1}). The last update contains the next step itself, which scales it to
s_{k+1} = p / (1 - a_k). A restart keeps the newest update only: H = (I + w s^T / d) (-I), with

    w = df * d / (s^T (s - df)),     df the last change of f(y)

where w is stored like a step, but forms no update with the step after it.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from solvers.base import FixedPointSolver
from solvers.checks import check_history
from solvers.methods.window import NO_WEIGHT, enlarge, inner, keep_rows, products, write
from solvers.promises import Promises
from solvers.types import Flat, Index, PerSample, Small, Window

if TYPE_CHECKING:
    from solvers.methods.static_steps import StaticSteps


class Steps(NamedTuple):
    """The steps since the last restart, their triangular system, and the last point and f(y).

    The slot after the newest step holds g(y), so that one product serves both without a copy.
    Row i of `system` holds -s_i^T s_{j+1} for j < i, then d_i; entries above are not read.
    """

    steps: Window
    system: Small
    point: Flat | None
    fy: Flat | None
    filled: int

    def push(self, y: Flat, fy: Flat, limit: int) -> tuple["Steps", Tensor]:
        """Store the newest step, g and the row; also return the right-hand side of the system."""
        assert self.point is not None
        at, memory = self.filled, self._grown(limit)
        steps = write(memory.steps, {at: (y, self.point), at + 1: (fy, y)})
        row, rhs = inner(steps[:, : at + 1], steps[:, at : at + 2])
        system = memory.system.clone() if torch.is_grad_enabled() else memory.system
        system[:, at, :at] = -row[:, 1:]
        system[:, at, at] = weight(row[:, at])
        return memory._replace(steps=steps, system=system, filled=at + 1), rhs

    def advance(self, y: Flat, fy: Flat, limit: int) -> tuple[Flat, "Steps"]:
        """Learn from the newest point, and return the next one."""
        if self.point is None:
            return fy, self._replace(point=y, fy=fy)
        if self.filled > limit:
            y_next, memory = self.restart(y, fy)
            return y_next, memory._replace(point=y, fy=fy)
        memory, rhs = self.push(y, fy, limit + 2)
        a = memory.coefficients(rhs)
        pivot = 1 - a[:, -1:]
        scale = pivot.masked_fill(pivot == 0, 1.0).reciprocal()
        y_next = torch.addcmul(y, memory.steps[:, memory.filled], scale.to(y.dtype))
        if memory.filled > 1:
            weights = (a[:, :-1] * scale).to(y.dtype)[:, None]
            later = memory.steps[:, 1 : memory.filled]
            y_next = torch.baddbmm(y_next[:, None], weights, later)[:, 0]
        return y_next, memory._replace(point=y, fy=fy)

    def restart(self, y: Flat, fy: Flat) -> tuple[Flat, "Steps"]:
        """Drop all updates but the newest; also return the next point."""
        assert self.point is not None
        assert self.fy is not None
        step = y - self.point
        y_next, size, follower = newest_update(step, y, fy, fy - self.fy)
        system = self.system.clone() if torch.is_grad_enabled() else self.system
        system[:, 0, 0] = weight(size[:, 0])
        system[:, 1, 0], system[:, 1, 1] = 0.0, NO_WEIGHT
        steps = write(self.steps, {0: (step, None), 1: (follower, None)})
        return y_next, self._replace(steps=steps, system=system, filled=2)

    def coefficients(self, rhs: Tensor) -> Tensor:
        """Return the a_i in float64, shape (samples, filled); zeros where numbers overflow."""
        system = self.system[:, : self.filled, : self.filled]
        solved = torch.linalg.solve_triangular(system, rhs.double()[:, :, None], upper=False)
        return solved[:, :, 0].nan_to_num(0.0, 0.0, 0.0)

    def transposed_inverse(self, v: Flat) -> Flat:
        """-H^T v, the transpose of the estimate of (I - J)^-1."""
        pairs = self.filled - 1
        if pairs < 1:
            return v
        (rhs,) = products(self.steps[:, 1:], pairs, v)
        system = self.system[:, :pairs, :pairs].mT
        weights = torch.linalg.solve_triangular(system, rhs.double()[:, :, None], upper=True)
        weights = weights.mT.nan_to_num(0.0, 0.0, 0.0).to(v.dtype)
        return torch.baddbmm(v[:, None], weights, self.steps[:, :pairs])[:, 0]

    def _grown(self, limit: int) -> "Steps":
        """Double the capacity, to at most `limit`, if there is no room for a step and g."""
        capacity = self.steps.shape[1]
        if self.filled + 1 < capacity:
            return self
        extra = min(capacity, limit - capacity)
        return self._replace(
            steps=enlarge(self.steps, extra),
            system=torch.nn.functional.pad(self.system, (0, extra, 0, extra)),
        )


def newest_update(step: Flat, y: Flat, fy: Flat, change: Flat) -> tuple[Flat, PerSample, Flat]:
    """The next point after a restart, |step|^2, and the vector w of the update that is kept."""
    size, on_change, along = products(step[:, None], 1, step, change, fy - y)
    # Where the update is singular, or a number overflows, take a plain step.
    inverse = (size - on_change).reciprocal().nan_to_num(0.0, 0.0, 0.0)
    follower = change * (size * inverse).nan_to_num(0.0, 0.0, 0.0)
    y_next = torch.addcmul(fy, change, (along * inverse).nan_to_num(0.0, 0.0, 0.0))
    return y_next, size, follower


def weight(size: Tensor) -> Tensor:
    """The diagonal of the system for steps of squared length `size`; zero gets no weight."""
    return size.double().masked_fill(size == 0, NO_WEIGHT)


@final
@dataclass(frozen=True, kw_only=True)
class Broyden(FixedPointSolver):
    """Good Broyden: a quasi-Newton method on g(y) = f(y) - y, one rank-one update a step.

        y <- y - H g(y)

    H, the estimate of the inverse Jacobian of g, starts at -I, so the first step is
    Picard's; once it consists of more than `history` updates, all but the newest are
    dropped. Only steps are kept: half the memory of a window of pairs, and on most of our
    problems fewer calls of `f` than with a window that drops its oldest pair.

    Superlinear near a regular solution, and with full memory often the fewest evaluations
    on stiff problems. No line search: far from the solution of a strongly nonlinear map it
    may wander. Cost per step: one call of `f`, O(history * n) arithmetic, and 1 state of
    memory per step since the last restart, up to `history` + 2.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        history: Rank-one updates kept, at least 1.

    Raises:
        ValueError: An option is out of its range.

    References:
        C. G. Broyden, A Class of Methods for Solving Nonlinear Simultaneous Equations,
        Math. Comp. 1965. C. T. Kelley, Solving Nonlinear Equations with Newton's Method,
        SIAM 2003, ch. 4 (the factors made of steps). The triangular system, one for all
        inner products of a sample, and the restart that keeps an update are ours.

    Example:
        >>> import solvers, torch
        >>> s = solvers.solve(torch.cos, torch.zeros(1, 1), solver=Broyden(rtol=1e-6))
        >>> s.converged.all().item(), s.num_evals < 8
        (True, True)
    """

    promises: ClassVar[Promises] = Promises(radius=math.inf)
    estimates_inverse: ClassVar[bool] = True

    history: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_history(self.history)

    def init(self, y: Flat) -> Steps:
        """No steps, and space for a few; the window grows on demand."""
        capacity = min(self.history + 2, 4)
        steps = y.new_empty(y.shape[0], capacity, y.shape[1], requires_grad=False)
        # The small matrices are cheap, and float64 has the range for squares of small numbers.
        system = torch.zeros(y.shape[0], capacity, capacity, dtype=torch.float64, device=y.device)
        return Steps(steps, system, None, None, 0)

    def init_static(self, y: Flat) -> "StaticSteps":
        """No steps, and space for all that are ever kept."""
        from solvers.methods.static_steps import StaticSteps  # most programs never need it

        return StaticSteps.empty(y, self.history + 1)

    def keep(self, carry: Steps, samples: Index) -> Steps:
        """Drop all but these samples, in place where possible: see `keep_rows`."""
        return carry._replace(
            steps=keep_rows(carry.steps, samples),
            system=keep_rows(carry.system, samples),
            point=None if carry.point is None else carry.point.index_select(0, samples),
            fy=None if carry.fy is None else carry.fy.index_select(0, samples),
        )

    def step(self, y: Flat, fy: Flat, carry: Steps) -> tuple[Flat, Steps]:
        """Take one quasi-Newton step; the module's docstring has the update."""
        return carry.advance(y, fy, self.history)
