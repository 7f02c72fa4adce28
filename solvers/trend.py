"""When to read numbers from an accelerator, which waits for Python as long as Python reads."""

import math

import torch
from torch import Tensor

from solvers.types import Mask, PerSample

# Steps between two readings. The first one is after one step, which may be the only one.
FIRST, SHORTEST, LONGEST = 1, 2, 8


class Trend:
    """When to read next, by how fast the sample that is farthest from its tolerance comes nearer.

    Args:
        longest: Most steps between two readings.

    Attributes:
        due: The step at which to read next.
    """

    def __init__(self, longest: int = LONGEST) -> None:
        self.due, self._longest = FIRST, longest
        self._step, self._distance = 0, math.nan

    def follow(self, step: int, distance: float, start: float) -> None:
        """Set `due`, from the largest log(residual / tolerance) now and at the start."""
        if step == self._step:
            return
        before = start if math.isnan(self._distance) else self._distance
        rate = (before - distance) / (step - self._step)
        left = distance / rate if 0 < rate < math.inf else math.inf
        self._step, self._distance = step, distance
        self.due = step + math.ceil(min(max(left, SHORTEST), self._longest))


def way_left(norm: PerSample | float, limit: PerSample, samples: Mask) -> Tensor:
    """The largest log(norm / limit) among some samples; -inf if there are none."""
    ratio = torch.where(samples, norm / limit, 0.0)
    return ratio.nan_to_num(0.0, 0.0, 0.0).amax().log()


def read(*numbers: Tensor) -> list[float]:
    """Read tensors without dims, all at once."""
    return torch.stack([number.double() for number in numbers]).tolist()
