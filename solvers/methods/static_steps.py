"""The steps of Broyden's method in a window of fixed size.

See `solvers.methods.static` for what such windows are, and `solvers.methods.broyden` for the
mathematics.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from solvers.methods.broyden import newest_update, weight
from solvers.methods.static import dots, no_equations, put, solve_lower
from solvers.types import Flat, Mask, Small, Window


class StaticSteps(NamedTuple):
    """As `Steps`, of fixed size for a loop within a graph; steps that are not in use are zero."""

    steps: Window
    system: Small
    point: Flat
    fy: Flat
    filled: Tensor
    seen: Tensor

    @classmethod
    def empty(cls, y: Flat, capacity: int) -> "StaticSteps":
        """No steps."""
        filled = torch.zeros((), dtype=torch.int64, device=y.device)
        steps, system = y.new_zeros(y.shape[0], capacity, y.shape[1]), no_equations(y, capacity)
        return cls(steps, system, torch.zeros_like(y), torch.zeros_like(y), filled, filled > 0)

    def advance(self, y: Flat, fy: Flat, limit: int) -> tuple[Flat, "StaticSteps"]:
        """See `Steps.advance`: plain steps, restarts and updates are computed alike, and chosen."""
        slots, full = torch.arange(limit + 1, device=y.device), self.filled > limit
        at, step, g = (slots == self.filled) & self.seen, y - self.point, fy - y
        pushed, rhs = self._push(at, slots < self.filled, step, g)
        a = solve_lower(pushed.system, rhs)
        pivot = 1 - torch.where(at, a, 0.0).sum(1, keepdim=True)
        scale = pivot.masked_fill(pivot == 0, 1.0).reciprocal()
        earlier = torch.where(slots < self.filled, a, 0.0).roll(1, 1)
        weights = (earlier * scale).to(y.dtype)
        y_next = torch.addcmul(y, g, scale.to(y.dtype))
        y_next = y_next + (weights[:, :, None] * pushed.steps).sum(1)
        restarted, size, follower = newest_update(step, y, fy, fy - self.fy)
        system = no_equations(y, limit + 1)
        system = torch.where((slots[:, None] == 0) & (slots == 0), weight(size)[:, :, None], system)
        steps = put(torch.zeros_like(self.steps), slots == 0, step)
        steps = put(steps, slots == 1, follower)
        memory = StaticSteps(
            torch.where(full, steps, pushed.steps),
            torch.where(full, system, pushed.system),
            y,
            fy,
            torch.where(full, 2, self.filled + self.seen),
            self.seen | True,
        )
        y_next = torch.where(full, restarted, y_next)
        return torch.where(self.seen, y_next, fy), memory

    def _push(self, at: Mask, earlier: Mask, step: Flat, g: Flat) -> tuple["StaticSteps", Tensor]:
        """See `Steps.push`."""
        steps = put(self.steps, at, step)
        row, rhs = dots(steps, step), dots(steps, g)
        new = torch.where(earlier, -row.roll(-1, 1).double(), 0.0)
        new = torch.where(at, weight(row), new)
        system = torch.where(at[:, None], new[:, None], self.system)
        return self._replace(steps=steps, system=system), rhs.double()
