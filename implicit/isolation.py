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

from implicit.base import ClosedMap
from solvers import Result, Solution
from solvers.packing import as_wide, map_tensors, tensors_of
from solvers.torch_internals import pytree
from solvers.types import State

# From a mask of bad samples and a cotangent to the cotangent that goes on.
Rule = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Isolation:
    """Bad samples of one solve, and what stands in for them.

    Attributes:
        bad: Shape `(*batch,)`, at least one dim.
        donor: Flat index of a good sample, of shape (1,).
        found: Whether there is one, as a tensor.
        alone: Whether no sample can influence another, so that a bad one may get any state.
    """

    bad: Tensor
    donor: Tensor
    found: Tensor
    alone: bool

    @classmethod
    def of(cls, bad: Tensor, args: tuple[Any, ...], independent: bool) -> "Isolation":
        """For these bad samples, from which nothing is read."""
        if any(leaf.shape[: bad.ndim] != bad.shape for leaf in tensors_of(args)):
            # What all tokens of a row share can be replaced for all of them only.
            rows = bad.flatten(1).any(1) if bad.ndim > 1 else bad
            bad = rows.reshape((-1, *[1] * (bad.ndim - 1))).expand_as(bad)
        good = (~bad).flatten()
        donor = good.to(torch.int8).argmax().view(1)
        return cls(bad, donor, good.any(), independent and bad.ndim == 1)

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
        return pytree.tree_map(lambda new, old: self._merge(told, new, old), value, y_star)

    def _merge(self, rule: Rule, good: Tensor, bad: Tensor) -> Tensor:
        return _Merge.apply(rule, as_wide(self.bad, good), good, bad)

    def _mask(self, leaf: Tensor) -> Tensor:
        rows = self.bad if leaf.shape[: self.bad.ndim] == self.bad.shape else self.bad[:, 0]
        return as_wide(rows, leaf)

    def _replaced(self, leaf: Tensor, mask: Tensor) -> Tensor:
        if leaf.shape[: self.bad.ndim] == self.bad.shape:
            samples, donor = leaf.detach().flatten(0, self.bad.ndim - 1), self.donor
        else:
            samples, donor = leaf.detach(), self.donor // self.bad[0].numel()
        # Without a good sample, any number will do at which maps are smooth.
        number = 0.5 if leaf.is_floating_point() or leaf.is_complex() else 0
        other = samples.index_select(0, donor).squeeze(0)
        other = torch.where(self.found, other, torch.full_like(other, number)).expand_as(leaf)
        return _Merge.apply(_straight, mask, leaf, other)


def isolated(solution: Solution, args: tuple[Any, ...], independent: bool) -> Isolation | None:
    """How to keep bad samples apart; None if there are none, or no good ones."""
    if not bool(solution.result.any()):  # all converged: the usual case, in one look
        return None
    bad = bad_samples(solution.residual, solution.result)
    return Isolation.of(bad, args, independent) if bool(bad.any()) else None


def bad_samples(residual: Tensor, result: Tensor) -> Tensor:
    """Those whose recorded call of `f` would hold NaN or inf."""
    return ~residual.isfinite() | (result == Result.nonfinite)


def told(bad: Tensor, v: Tensor) -> Tensor:
    """The cotangent of a value, NaN where it asks for a bad sample."""
    return torch.where(as_wide(bad, v) & (v != 0), torch.nan, v)


class _Merge(torch.autograd.Function):
    """Good samples of one tensor and bad ones of another, whose cotangent goes by a rule."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rule: Rule, mask: Tensor, good: Tensor, bad: Tensor) -> Tensor:
        return torch.where(mask, bad, good)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.rule, mask, *_ = inputs
        ctx.save_for_backward(mask)
        ctx.save_for_forward(mask)

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return None, None, ctx.rule(mask, v[0]), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (mask,) = ctx.saved_tensors
        # Who was told of by NaN in a gradient moves by NaN.
        return torch.where(mask, torch.nan if ctx.rule is told else 0.0, tangents[2])


def _straight(_: Tensor, v: Tensor) -> Tensor:
    return v


def _cut(mask: Tensor, v: Tensor) -> Tensor:
    return torch.where(mask & v.isfinite(), 0.0, v)
