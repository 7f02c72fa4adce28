"""Which samples may influence each other, and what that means for their verdicts."""

import math

import torch

from solvers.norms import row_norms
from solvers.packing import StatePacking
from solvers.types import Flat, Index, Mask, PerSample


class Coupling:
    """Which samples may influence a sample.

    In each row these are the samples up to its own position, such as earlier tokens; of other rows
    only unless rows are independent.

    Attributes:
        independent: Rows cannot influence each other.
        joint: The samples of a row, such as tokens, may influence each other.
        coupled: Some samples may influence others.
    """

    def __init__(self, packing: StatePacking, independent: bool):
        self.per_row, self.num_rows = packing.samples_per_row, packing.num_rows
        self.independent, self.joint = independent, packing.has_tokens
        self.coupled = self.joint or not independent

    def largest(self, norm: PerSample) -> PerSample:
        """The largest norm among the samples that may influence each sample, itself included."""
        if not self.coupled:
            return norm
        rows = norm.nan_to_num(0.0, 0.0, 0.0).view(-1, self.per_row)
        if not self.independent:
            rows = rows.amax(0).expand(rows.shape[0], -1)
        return rows.cummax(1).values.flatten()

    def at_rest(self, quiet: Mask) -> Mask:
        """Samples that are quiet together with all samples that may influence them.

        For a token these are the tokens before it: waiting for later ones would pass information
        from them to an earlier token of a causal model.
        """
        if not self.coupled:
            return quiet
        rows = quiet.view(-1, self.per_row)
        if not self.independent:
            rows = rows.all(0).expand(rows.shape[0], -1)
        return rows.cummin(1).values.flatten()

    def left_alone(self, samples: Mask, settled: Mask, before: Mask) -> Mask:
        """Which of the samples, that a solver gave up, no other can influence any more.

        If an influencing sample has only just stopped, that is, since `before`, they get one more
        step.
        """
        return samples & self.at_rest(settled == before) & self.at_rest(samples | settled)

    def settled(self, result: torch.Tensor) -> Mask:
        """Samples whose verdict is final."""
        if not self.joint:
            return (result >= 0) if self.independent else (result > 0)
        closed = (result >= 0).view(-1, self.per_row).all(1, keepdim=True)
        closed = closed.expand(-1, self.per_row).flatten()
        return (result > 0) | (closed & self.independent)

    def patience(self, result: torch.Tensor, entries: int) -> Index:
        """Steps for which a residual may grow: twice the entries that can influence the sample."""
        each = 2 * entries * (1 if self.independent else self.num_rows)
        seen = torch.arange(1, self.per_row + 1, device=result.device)
        return (each * seen).repeat(result.shape[0] // self.per_row)

    def sizes(self, rhs: Flat) -> PerSample:
        """Norms of a right-hand side b. If samples are coupled, at least their root mean square."""
        norm = row_norms(rhs)
        if self.independent:
            return norm
        known = norm.nan_to_num(0.0, 0.0, 0.0)
        return torch.maximum(norm, row_norms(known[None]) / math.sqrt(max(known.shape[0], 1)))
