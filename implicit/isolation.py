"""Keep samples that became NaN or inf out of the gradient of the others.

The backward pass of an operation multiplies a cotangent by a derivative, and zero times NaN is
NaN: one bad sample would spoil the gradient of every shared weight, even where the loss leaves
it out. So the recorded calls of `f` see a good sample's state and `args` in its place. What `f`
closes over cannot be replaced like this; there, what autograd saves of a bad sample is replaced.
Sparse tensors stay as they are: most layouts let no row be taken out, and their entries are shared.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from implicit.base import BackwardMode, ClosedMap, SolveContext
from solvers import Result, Solution
from solvers.torch_internals import pytree, transforms_in_force, version_of
from solvers.trees import as_wide, is_dense, map_tensors, tensors_of
from solvers.types import State

_SMOOTH = 0.5  # where maps have a finite derivative, which many do not at zero
# From a mask of bad samples and a cotangent to the cotangent that is passed on.
Rule = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Isolation:
    """The bad samples of one solve, and the good sample that stands in for them.

    Attributes:
        bad: Shape `(*batch,)`, bool, at least one dim.
        donor: Shape (1,): flat index of a good sample.
        found: Bool tensor: whether there is a good sample.
        alone: Whether no sample can influence another, so that a bad one may get any state.
    """

    bad: Tensor
    donor: Tensor
    found: Tensor
    alone: bool

    @classmethod
    def of(cls, bad: Tensor, args: tuple[Any, ...], independent: bool) -> "Isolation":
        """Choose a donor for these bad samples, without reading a tensor."""
        if any(leaf.shape[: bad.ndim] != bad.shape for leaf in tensors_of(args)):
            # An argument that all tokens of a row share can be replaced for whole rows only.
            rows = bad.flatten(1).any(1) if bad.ndim > 1 else bad
            bad = rows.reshape((-1, *[1] * (bad.ndim - 1))).expand_as(bad)
        good = (~bad).flatten()
        donor = good.to(torch.int8).argmax().view(1)
        return cls(bad, donor, good.any(), independent and bad.ndim == 1)

    def args(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replace the arguments of bad samples by those of the donor."""

        def clean(leaf: Tensor) -> Tensor:
            return self._replaced(leaf, self._mask(leaf)) if is_dense(leaf) else leaf

        return map_tensors(clean, args)

    def state(self, y: State) -> State:
        """Make bad samples finite.

        They become copies of the donor or, where samples may influence each other, keep their own
        state but for entries of NaN and inf.
        """

        def clean(leaf: Tensor) -> Tensor:
            mask = as_wide(self.bad, leaf)
            return self._replaced(leaf, mask if self.alone else mask & ~leaf.isfinite())

        return pytree.tree_map(clean, y)

    def frozen(self, f: ClosedMap, y: State) -> ClosedMap:
        """Change `f` so that bad samples stay at `y` and pass no cotangent on, unless it is NaN."""

        def frozen(given: State) -> State:
            return pytree.tree_map(
                lambda new, old: self._merge(_zero_if_bad, new, old), f(given), y
            )

        return frozen

    def merged(self, value: State, y_star: State) -> State:
        """Take good samples from the attached value, and bad ones from the solver's.

        The gradient of a loss that uses a bad sample is NaN, and that of any other loss is not.
        """
        return pytree.tree_map(lambda new, old: self._merge(nan_if_bad, new, old), value, y_star)

    def saved_tensors(self) -> saved_tensors_hooks:
        """A context in which autograd saves no NaN, and nothing infinite of a bad sample.

        The bad samples have cotangents of zero, and any finite derivative keeps them at zero.
        Autograd leaves it to such hooks to notice tensors that were written into meanwhile.
        """

        def pack(saved: Tensor) -> tuple[Tensor, int]:
            if not is_dense(saved):
                return saved, version_of(saved)
            spoiled = saved.isnan()
            if saved.shape[: self.bad.ndim] == self.bad.shape:
                spoiled |= as_wide(self.bad, saved) & ~saved.isfinite()
            if bool(spoiled.any()):
                saved = saved.masked_fill(spoiled, _SMOOTH)
            return saved, version_of(saved)

        def unpack(packed: tuple[Tensor, int]) -> Tensor:
            saved, version = packed
            if version_of(saved) != version:
                raise RuntimeError(
                    "One of the variables needed for gradient computation has been modified by an "
                    f"inplace operation: a tensor of shape {tuple(saved.shape)}, which `f` used. "
                    "Call `backward` before you change it, as by a step of an optimiser."
                )
            return saved

        return saved_tensors_hooks(pack, unpack)

    def _merge(self, rule: Rule, good: Tensor, bad: Tensor) -> Tensor:
        return _merge(rule, as_wide(self.bad, good), good, bad)

    def _mask(self, leaf: Tensor) -> Tensor:
        rows = self.bad if leaf.shape[: self.bad.ndim] == self.bad.shape else self.bad[:, 0]
        return as_wide(rows, leaf)

    def _replaced(self, leaf: Tensor, mask: Tensor) -> Tensor:
        if leaf.shape[: self.bad.ndim] == self.bad.shape:
            samples, donor = leaf.detach().flatten(0, self.bad.ndim - 1), self.donor
        else:
            samples, donor = leaf.detach(), self.donor // self.bad[0].numel()
        # Without a good sample:
        number = _SMOOTH if leaf.is_floating_point() or leaf.is_complex() else 0
        other = samples.index_select(0, donor).squeeze(0)
        other = torch.where(self.found, other, torch.full_like(other, number)).expand_as(leaf)
        return _merge(_unchanged, mask, leaf, other)


def isolated(solution: Solution, args: tuple[Any, ...], independent: bool) -> Isolation | None:
    """The isolation of the bad samples of a solution; None if it has none."""
    if not bool(solution.result.any()):  # all converged: the usual case, told by one read
        return None
    bad = bad_samples(solution.residual, solution.result)
    return Isolation.of(bad, args, independent) if bool(bad.any()) else None


def attach_isolated(
    mode: BackwardMode,
    f: Callable[[State, Any], State],
    y_star: State,
    args: Any,
    isolation: Isolation | None,
    context: SolveContext,
) -> State:
    """Attach the gradient of a mode to the solution of y = f(y, args), without its bad samples."""
    if isolation is None:
        return mode.attach(lambda y: f(y, args), y_star, context)
    clean, args = isolation.state(y_star), isolation.args(args)

    def good(y: State) -> State:
        with contextlib.nullcontext() if transforms_in_force() else isolation.saved_tensors():
            return f(y, args)

    attached = mode.attach(isolation.frozen(good, clean), clean, context)
    return isolation.merged(attached, y_star)


def bad_samples(residual: Tensor, result: Tensor) -> Tensor:
    """Find the samples whose recorded call of `f` would hold NaN or inf."""
    return ~residual.isfinite() | (result == Result.nonfinite)


def nan_if_bad(bad: Tensor, v: Tensor) -> Tensor:
    """Make the cotangent of a bad sample NaN where it is not zero: the loss uses that sample."""
    return torch.where(as_wide(bad, v) & (v != 0), torch.nan, v)


def _merge(rule: Rule, mask: Tensor, good: Tensor, bad: Tensor) -> Tensor:
    # Dynamo traces no function with a rule for forward mode.
    function = _Merge if torch.compiler.is_compiling() else _MergeWithTangent
    return function.apply(rule, mask, good, bad)


class _Merge(torch.autograd.Function):
    """Good samples of one tensor, bad ones of another; a rule for the cotangent of the first."""

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


class _MergeWithTangent(_Merge):
    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (mask,) = ctx.saved_tensors
        # A sample whose gradient would be NaN has a tangent of NaN as well.
        return torch.where(mask, torch.nan if ctx.rule is nan_if_bad else 0.0, tangents[2])


def _unchanged(_: Tensor, v: Tensor) -> Tensor:
    return v


def _zero_if_bad(mask: Tensor, v: Tensor) -> Tensor:
    return torch.where(mask & v.isfinite(), 0.0, v)
