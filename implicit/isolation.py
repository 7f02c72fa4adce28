"""Keep samples that became NaN or inf out of the gradient of the others.

The backward pass of an operation multiplies a cotangent by a derivative, and zero times NaN is
NaN: one bad sample would spoil the gradient of every shared weight, even where the loss leaves
it out. So the calls of `f` that are recorded see a good sample's state and `args` in its place.
What a bad sample has in the closure of `f` cannot be replaced: pass per-sample tensors in `args`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicit.base import ClosedMap
from solvers import Result, Solution
from solvers.layout import as_wide, map_tensors, tensors_of
from solvers.types import State

# From a mask of bad samples and a cotangent to the cotangent that goes on.
Rule = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Isolation:
    """Bad samples of one solve, and what stands in for them.

    Attributes:
        bad: Shape `(*batch,)`.
        donor: Flat index of a good sample.
        alone: Whether no sample can influence another, so that a bad one may get any state.
    """

    bad: Tensor
    donor: int
    alone: bool

    def args(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, those of a bad sample replaced; a loss that it is part of sees NaN."""
        return map_tensors(lambda leaf: self._replaced(leaf, self._mask(leaf)), args)

    def state(self, y: State) -> State:
        """A state whose bad samples are finite; frozen as they are where others may see them."""

        def clean(leaf: Tensor) -> Tensor:
            mask = as_wide(self.bad, leaf)
            return self._replaced(leaf, mask if self.alone else mask & ~leaf.isfinite())

        return pytree.tree_map(clean, y)

    def frozen(self, f: ClosedMap, y: State) -> ClosedMap:
        """`f`, but the bad samples stay at `y` and pass no cotangent on, unless it is NaN."""

        def of_good(given: State) -> State:
            return pytree.tree_map(lambda new, old: self._merge(_cut, new, old), f(given), y)

        return of_good

    def merged(self, value: State, y_star: State) -> State:
        """The attached value, and for bad samples the solver's.

        A loss that uses one of them has NaN for its gradient, and no other loss has.
        """
        return pytree.tree_map(lambda new, old: self._merge(_told, new, old), value, y_star)

    def _merge(self, rule: Rule, good: Tensor, bad: Tensor) -> Tensor:
        return _Merge.apply(rule, as_wide(self.bad, good), good, bad)

    def _mask(self, leaf: Tensor) -> Tensor:
        rows = self.bad if leaf.shape[: self.bad.ndim] == self.bad.shape else self.bad[:, 0]
        return as_wide(rows, leaf)

    def _replaced(self, leaf: Tensor, mask: Tensor) -> Tensor:
        donor = self.donor
        if leaf.shape[: self.bad.ndim] == self.bad.shape:
            other = leaf.detach().flatten(0, self.bad.ndim - 1)[donor]
        else:
            other = leaf.detach()[donor // self.bad[0].numel()]
        return _Merge.apply(_straight, mask, leaf, other.expand_as(leaf))


def isolated(solution: Solution, args: tuple[Any, ...], independent: bool) -> Isolation | None:
    """How to keep bad samples apart; None if there are none, or no good ones."""
    bad = ~solution.residual.isfinite() | (solution.result == Result.nonfinite)
    if not bool(bad.any()):
        return None
    if bad.ndim > 1 and any(leaf.shape[: bad.ndim] != bad.shape for leaf in tensors_of(args)):
        # What all tokens of a row share can be replaced for all of them only.
        bad = bad.flatten(1).any(1).view(-1, *[1] * (bad.ndim - 1)).expand_as(bad)
    good = (~bad).flatten().nonzero()
    if not len(good):
        return None
    return Isolation(bad, int(good[0]), alone=independent and bad.ndim == 1)


class _Merge(torch.autograd.Function):
    """Good samples of one tensor and bad ones of another, whose cotangent goes by a rule."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, mask: Tensor, good: Tensor, bad: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(mask)
        return torch.where(mask, bad, good)

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return None, None, ctx.rule(mask, v[0]), None


def _straight(_: Tensor, v: Tensor) -> Tensor:
    return v


def _cut(mask: Tensor, v: Tensor) -> Tensor:
    return torch.where(mask & v.isfinite(), 0.0, v)


def _told(mask: Tensor, v: Tensor) -> Tensor:
    return torch.where(mask & (v != 0), torch.nan, v)
