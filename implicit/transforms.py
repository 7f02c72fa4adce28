"""Fixed points under `torch.func` transforms and forward mode.

A transform cannot look into a loop that reads its own verdicts. So the solve is one operation
to it, with a derivative rule in each direction; with y* = f(y*, c), J = df/dy and v a cotangent,
t = df/dc c' a tangent,

    reverse:  u = v + J^T u,  c_bar = (df/dc)^T u        forward:  w = t + J w,  y' = w

and both linear equations are again one operation each, with derivative rules of their own, so
that transforms nest to any depth. Under `vmap` the mapped dims become part of the batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from implicit.base import AdjointMode, BackwardMode, SolveContext
from implicit.closure import ClosedOver
from implicit.derivatives import Leaves, primals, pulled, pushed, to_front, zeros_for
from implicit.exact import Exact
from implicit.isolation import Isolation, bad_samples, told
from solvers import Solution
from solvers.compiler import uncompiled
from solvers.derivatives import jvp
from solvers.packing import as_wide
from solvers.solve import raise_if_failed
from solvers.torch_internals import (
    dual_level_in_force,
    load_forward_mode,
    pytree,
    set_fwd_grad_enabled,
    transforms_in_force,
)
from solvers.types import State


def transforms_active() -> bool:
    """Whether a `torch.func` transform or a dual level is in force."""
    return transforms_in_force() or dual_level_in_force()


def solve_transformed(
    f: Callable[[State, Any], State],
    y0: State,
    args: Any,
    mode: BackwardMode,
    context: SolveContext,
    *,
    throw: bool,
) -> Solution:
    """Solve y = f(y, args) as one operation of the transforms, with derivatives by `mode`."""
    if mode.needs_memory:
        raise NotImplementedError(
            f"`{type(mode).__name__.lower()}` has no rule for torch.func and forward mode, where "
            "the solver's memory is out of reach. Use backward='exact', or plain autograd."
        )
    load_forward_mode()
    leaves, spec = pytree.tree_flatten(y0)
    context = dataclasses.replace(context, structure=spec)
    start = [leaf.detach() for leaf in leaves]
    closed = ClosedOver(f, pytree.tree_unflatten(start, spec), args)

    def flat(y: Leaves, consts: Leaves) -> list[Tensor]:
        return pytree.tree_leaves(closed(pytree.tree_unflatten(list(y), spec), consts))

    def clean(y: Leaves, consts: Leaves) -> list[Tensor]:
        """`flat` with other samples in the place of bad ones, of which the last constant tells."""
        *consts, bad = consts
        given = tuple(consts[: closed.num_given])
        apart = Isolation.of(bad, given, context.independent)
        y = apart.state(list(y))
        consts[: closed.num_given] = apart.args(given)
        return apart.frozen(lambda y: flat(y, consts), y)(y)

    problem = _Problem(
        f=flat,
        clean=clean,
        count=len(leaves),
        mode=mode,
        context=context,
        throw=throw,
        counts=[],
        spoiled=[],
    )
    consts = closed.consts
    if not isinstance(mode, AdjointMode):  # its gradient comes from what it adds to the value
        consts = [const.detach() for const in consts]
    *value, residual, result, num_steps = _Solve.apply(problem, *start, *consts)
    num_evals, rows_evaluated = problem.counts[0]
    solution = Solution(
        value=pytree.tree_unflatten(value, spec),
        residual=residual,
        result=result,
        num_steps=num_steps,
        # One more, to see what `f` closes over.
        num_evals=num_evals + 1,
        rows_evaluated=rows_evaluated + (leaves[0].shape[0] if context.batch_dims else 1),
        adjoints=context.adjoints,
    )
    if isinstance(mode, AdjointMode):
        return solution
    if not problem.spoiled[0]:
        value = mode.attach(lambda y: f(y, args), solution.value, context)
    else:
        apart = Isolation.of(bad_samples(residual, result), args, context.independent)
        y_star, args = apart.state(solution.value), apart.args(args)
        attached = mode.attach(apart.frozen(lambda y: f(y, args), y_star), y_star, context)
        value = apart.merged(attached, solution.value)
    return dataclasses.replace(solution, value=value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Problem:
    """What all derivatives of one solve share.

    Attributes:
        f: The map of the state's leaves and of what it closes over.
        clean: The same, for derivatives where a sample is bad; a mask of them is one constant more.
        count: Number of leaves of the state.
        mode: Which gradient.
        context: How it is solved.
        throw: Whether a failed sample raises.
        counts: Receives the calls and rows of the solve.
        spoiled: Receives whether some samples are bad and others are not.
        lead: Sizes of the mapped dims in front of the state.
    """

    f: Callable[[Leaves, Leaves], list[Tensor]]
    clean: Callable[[Leaves, Leaves], list[Tensor]]
    count: int
    mode: BackwardMode
    context: SolveContext
    throw: bool
    counts: list[tuple[int, int]]
    spoiled: list[bool]
    lead: tuple[int, ...] = ()

    def mapped(self, info: Any, const_dims: Sequence[int | None]) -> "_Problem":
        """The problem with one more mapped dim, at the front of state and constants."""
        dims = [None if dim is None else 0 for dim in const_dims]

        def over(f: Any, dims: list[int | None]) -> Any:
            in_dims = ([0] * self.count, dims)
            mapped = torch.func.vmap(f, in_dims=in_dims, randomness=info.randomness)
            return lambda y, consts: mapped(list(y), list(consts))

        return dataclasses.replace(
            self,
            f=over(self.f, dims),
            clean=over(self.clean, [*dims, 0]),
            lead=(info.batch_size, *self.lead),
        )

    def apart(self, ctx: Any, saved: Leaves) -> "tuple[_Problem, Leaves, Leaves, Tensor | None]":
        """The problem to differentiate, y*, the constants, and a mask of bad samples if any."""
        residual, result, *rest = saved
        y, consts = _saved(ctx, rest)
        if not self.spoiled[0] or not self.context.batch_dims:
            return self, y, consts, None
        bad = bad_samples(residual, result)
        return dataclasses.replace(self, f=self.clean), y, [*consts, bad], bad

    @property
    def batch_dims(self) -> int:
        """Batch dims of the state once the mapped dims are merged into them."""
        return max(self.context.batch_dims, 1) if self.lead else self.context.batch_dims

    @property
    def independent(self) -> bool:
        """Whether no sample of the merged batch can influence another."""
        alone = bool(self.lead) and not self.context.batch_dims
        return alone or self.context.independent

    def merged(self, leaves: Leaves) -> list[Tensor]:
        """Mapped dims and the first batch dim as one."""
        if not self.lead:
            return list(leaves)
        keep = len(self.lead) + (1 if self.context.batch_dims else 0)
        return [leaf.reshape(-1, *leaf.shape[keep:]) for leaf in leaves]

    def parted(self, leaves: Leaves, like: Leaves) -> list[Tensor]:
        """The inverse of `merged`."""
        return [leaf.reshape(old.shape) for leaf, old in zip(leaves, like, strict=True)]

    def merge(self, apply: Callable[[Leaves], Leaves], like: Leaves) -> Callable[..., Any]:
        """A map of leaves as a map of merged leaves, for the solvers."""
        return lambda y: self.merged(apply(self.parted(y, like)))

    def product(
        self, y: Leaves, consts: Leaves, transpose: bool
    ) -> Callable[[Leaves], list[Tensor]]:
        """Multiplication with J = df/dy, or with its transpose."""
        f = lambda y: self.f(y, consts)  # noqa: E731
        if transpose:
            pull: Any = torch.func.vjp(f, list(y))[1]
            return lambda u: list(pull(list(u))[0])
        return lambda t: list(jvp(f, list(y), list(t)))

    def invert(self, w: Leaves, y: Leaves, consts: Leaves, transpose: bool) -> list[Tensor]:
        """What the mode has in place of (I - J)^-1 w, or of its transpose."""
        if isinstance(self.mode, Exact):
            return list(_Linear.apply(self, transpose, *w, *y, *consts))
        assert isinstance(self.mode, AdjointMode)
        return list(self.mode.adjoint(self.product(y, consts, transpose), list(w), self.context))


def _outer_tangents_flow(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Turn forward mode on in a rule, where it is off, for the transforms around this one."""

    @functools.wraps(rule)
    def wrapped(*args: Any) -> Any:
        with set_fwd_grad_enabled(True):
            return rule(*args)

    return wrapped


class _Solve(torch.autograd.Function):
    """(y0, consts) -> (y*, residual, result, num_steps)."""

    @staticmethod
    @uncompiled
    def forward(problem: _Problem, *tensors: Tensor) -> tuple[Tensor, ...]:
        y0, consts = tensors[: problem.count], tensors[problem.count :]
        context = problem.context
        with torch.no_grad():
            solution = context.solver.iterate(
                problem.merge(lambda y: problem.f(y, consts), y0),
                problem.merged(y0),
                max_steps=context.max_steps,
                batch_dims=problem.batch_dims,
                independent=problem.independent,
                scale=context.scale,
            )
        if problem.throw:
            raise_if_failed(solution, problem.independent)
        problem.counts.append((solution.num_evals, solution.rows_evaluated))
        bad = bad_samples(solution.residual, solution.result)
        problem.spoiled.append(bool(bad.any()))
        shape = y0[0].shape[: len(problem.lead) + context.batch_dims]
        evidence = (solution.residual, solution.result, solution.num_steps)
        # Fresh tensors, so that the caller may change the value in place.
        value = [leaf.clone() for leaf in problem.parted(solution.value, y0)]
        return (*value, *(part.reshape(shape) for part in evidence))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        problem, *tensors = inputs
        ctx.problem = problem
        ctx.set_materialize_grads(False)  # so that constants are known as such
        ctx.mark_non_differentiable(*output[problem.count :])
        residual, result, _ = output[problem.count :]
        saved = (residual, result, *output[: problem.count], *tensors[problem.count :])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    @uncompiled
    def backward(ctx: Any, *v: Tensor | None) -> Any:
        problem, y, consts, bad = ctx.problem.apart(ctx, ctx.saved_tensors)
        wanted = ctx.needs_input_grad[1 + problem.count :]
        none = (None,) * (1 + problem.count)
        if not any(wanted):
            return (*none, *(None,) * len(wanted))
        asked = zeros_for(y, v[: problem.count])
        if bad is not None:
            asked, wanted = [told(bad, leaf) for leaf in asked], (*wanted, False)
        u = problem.invert(asked, y, consts, transpose=True)
        found = pulled(lambda c: problem.f(y, c), consts, wanted, u)
        return (*none, *(found if bad is None else found[:-1]))

    @staticmethod
    @uncompiled
    @_outer_tangents_flow
    def jvp(ctx: Any, *tangents: Any) -> Any:
        problem, y, consts, bad = ctx.problem.apart(ctx, primals(ctx.saved_tensors))
        moving = [*tangents[1 + problem.count :], *([] if bad is None else [None])]
        t = pushed(lambda c: problem.f(y, c), consts, moving, y)
        w = problem.invert(t, y, consts, transpose=False)
        if bad is not None:
            w = [torch.where(as_wide(bad, leaf), torch.nan, leaf) for leaf in w]
        return (*w, None, None, None)

    @staticmethod
    @uncompiled
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        problem, *tensors = inputs
        moved = to_front(info, in_dims[1:], tensors, expand=problem.count)
        out = _Solve.apply(problem.mapped(info, in_dims[1 + problem.count :]), *moved)
        return out, (0,) * len(out)


class _Linear(torch.autograd.Function):
    """(w, y*, consts) -> x with x = w + A x, where A is J or its transpose."""

    @staticmethod
    @uncompiled
    def forward(problem: _Problem, transpose: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        w, y, consts = _three(problem, tensors)
        product = problem.product(y, consts, transpose)

        def step(x: Leaves) -> list[Tensor]:
            return [a + b for a, b in zip(w, product(x), strict=True)]

        context = dataclasses.replace(
            problem.context, batch_dims=problem.batch_dims, independent=problem.independent
        )
        assert isinstance(problem.mode, Exact)
        with torch.no_grad():
            merged = problem.merge(step, w)
            x = problem.mode.solve(merged, problem.merged(w), context, transposed=transpose)
        return tuple(leaf.clone() for leaf in problem.parted(x, w))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.problem, ctx.transpose, *tensors = inputs
        ctx.set_materialize_grads(False)
        saved = (*output, *tensors[ctx.problem.count :])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    @uncompiled
    def backward(ctx: Any, *a: Tensor | None) -> Any:
        problem: _Problem = ctx.problem
        x, y, consts = _three(problem, ctx.saved_tensors)
        z = problem.invert(zeros_for(x, a), y, consts, transpose=not ctx.transpose)
        wanted = ctx.needs_input_grad[2 + problem.count :]
        return (None, None, *z, *pulled(_bilinear(ctx, x), (*y, *consts), wanted, z))

    @staticmethod
    @uncompiled
    @_outer_tangents_flow
    def jvp(ctx: Any, *tangents: Any) -> Any:
        problem: _Problem = ctx.problem
        x, y, consts = _three(problem, primals(ctx.saved_tensors))
        w, rest = tangents[2 : 2 + problem.count], tangents[2 + problem.count :]
        moved = pushed(_bilinear(ctx, x), (*y, *consts), rest, x)
        rhs = [b if a is None else a + b for a, b in zip(w, moved, strict=True)]
        return tuple(problem.invert(rhs, y, consts, transpose=ctx.transpose))

    @staticmethod
    @uncompiled
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        problem, transpose, *tensors = inputs
        count = problem.count
        moved = to_front(info, in_dims[2:], tensors, expand=2 * count)
        mapped = problem.mapped(info, in_dims[2 + 2 * count :])
        out = _Linear.apply(mapped, transpose, *moved)
        return out, (0,) * len(out)


def _bilinear(ctx: Any, x: Leaves) -> Callable[[Leaves], list[Tensor]]:
    """(y, consts) -> A(y, consts) x, to be differentiated at fixed x."""
    problem, transpose = ctx.problem, ctx.transpose

    def f(at: Leaves) -> list[Tensor]:
        return problem.product(at[: problem.count], at[problem.count :], transpose)(x)

    return f


def _saved(ctx: Any, saved: Leaves) -> tuple[Leaves, Leaves]:
    """y* and the constants; under approximate modes y* counts as constant."""
    y, consts = saved[: ctx.problem.count], saved[ctx.problem.count :]
    return (y if isinstance(ctx.problem.mode, Exact) else [leaf.detach() for leaf in y]), consts


def _three(problem: _Problem, tensors: Sequence[Tensor]) -> tuple[Leaves, Leaves, Leaves]:
    n = problem.count
    return tensors[:n], tensors[n : 2 * n], tensors[2 * n :]
