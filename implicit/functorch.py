"""Fixed points under `torch.func` transforms and forward mode.

A transform cannot trace a loop that reads its own verdicts. So the solve is one operation for it,
with a derivative rule in each direction. With y* = f(y*, c), J = df/dy, a cotangent v and
a tangent t = df/dc c',

    reverse:  u = v + J^T u,  c_bar = (df/dc)^T u        forward:  w = t + J w,  y' = w

and both linear equations are again one operation each, with derivative rules of their own, so
that transforms nest to any depth. Under `vmap` the mapped dims become part of the batch.

`autograd.py` serves plain autograd; `fixed_point.py` says why there are two ways.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from implicit.base import AdjointMode, BackwardMode, SolveContext
from implicit.closure import ConvertedClosure, closure_convert
from implicit.derivatives import (
    Leaves,
    mapped_dims_to_front,
    partial_jvp,
    partial_vjp,
    primals,
    zeros_for_none,
)
from implicit.isolation import Isolation, attach_isolated, bad_samples, nan_if_bad
from implicit.modes.exact import Exact
from solvers import Solution
from solvers.compiler import uncompiled
from solvers.derivatives import jvp
from solvers.packing import StatePacking
from solvers.solution import raise_if_failed
from solvers.torch_internals import (
    load_forward_mode,
    pytree,
    set_fwd_grad_enabled,
)
from solvers.trees import as_wide
from solvers.types import State


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
    StatePacking(y0, context.batch_dims, context.scale)  # refuses a scale of another structure
    scale = None if context.scale is None else pytree.tree_leaves(context.scale)
    context = dataclasses.replace(context, structure=spec, scale=scale)
    start = [leaf.detach() for leaf in leaves]
    converted = closure_convert(f, pytree.tree_unflatten(start, spec), args)
    problem = _problem(converted, len(leaves), mode, context, throw)
    consts = converted.consts
    if not isinstance(mode, AdjointMode):  # its gradient comes from the calls of `f` it records
        consts = [const.detach() for const in consts]
    *value, residual, result, num_steps = _Solve.apply(problem, *start, *consts)
    num_evals, rows_evaluated = problem.counts[0]
    solution = Solution(
        value=pytree.tree_unflatten(value, spec),
        residual=residual,
        result=result,
        num_steps=num_steps,
        # One more call was made to find the tensors that `f` closes over.
        num_evals=num_evals + 1,
        rows_evaluated=rows_evaluated + (leaves[0].shape[0] if context.batch_dims else 1),
        adjoints=context.adjoints,
    )
    if isinstance(mode, AdjointMode):
        return solution
    isolation = None
    if problem.some_bad[0]:
        isolation = Isolation.of(bad_samples(residual, result), args, context.independent)
    value = attach_isolated(mode, f, solution.value, args, isolation, context)
    return dataclasses.replace(solution, value=value)


def _problem(
    converted: ConvertedClosure,
    count: int,
    mode: BackwardMode,
    context: SolveContext,
    throw: bool,
) -> "_Problem":
    """Gather what the derivatives of one solve need; its map becomes one of leaves."""
    spec, num_given = context.structure, converted.num_given
    assert spec is not None

    def f(y: Leaves, consts: Leaves) -> list[Tensor]:
        return pytree.tree_leaves(converted(pytree.tree_unflatten(list(y), spec), consts))

    def isolated(y: Leaves, consts: Leaves) -> list[Tensor]:
        *consts, bad = consts
        given = tuple(consts[:num_given])
        isolation = Isolation.of(bad, given, context.independent)
        y = isolation.state(list(y))
        consts[:num_given] = isolation.args(given)
        return isolation.frozen(lambda y: f(y, consts), y)(y)

    return _Problem(
        f=f,
        f_isolated=isolated,
        count=count,
        mode=mode,
        context=context,
        throw=throw,
        counts=[],
        some_bad=[],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Problem:
    """What all derivatives of one solve share.

    Attributes:
        f: The map of the state's leaves and of the constants that it closes over.
        f_isolated: The same with good samples in the place of bad ones, for derivatives where a
            sample is bad. It takes one constant more, the last one: a mask of the bad samples.
        count: Number of leaves of the state.
        mode: The backward mode.
        context: How the equation is solved.
        throw: Whether a failed sample raises.
        counts: Receives the calls and rows of the solve.
        some_bad: Receives whether some samples are bad.
        mapped_sizes: Sizes of the dims that `vmap` maps, in front of the state.
    """

    f: Callable[[Leaves, Leaves], list[Tensor]]
    f_isolated: Callable[[Leaves, Leaves], list[Tensor]]
    count: int
    mode: BackwardMode
    context: SolveContext
    throw: bool
    counts: list[tuple[int, int]]
    some_bad: list[bool]
    mapped_sizes: tuple[int, ...] = ()

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
            f_isolated=over(self.f_isolated, [*dims, 0]),
            mapped_sizes=(info.batch_size, *self.mapped_sizes),
        )

    def isolated(self, ctx: Any, saved: Leaves) -> "tuple[_Problem, Leaves, Leaves, Tensor | None]":
        """The problem to differentiate, y*, the constants, and a mask of bad samples if any."""
        residual, result, *rest = saved
        y, consts = _saved(ctx, rest)
        if not self.some_bad[0] or not self.context.batch_dims:
            return self, y, consts, None
        bad = bad_samples(residual, result)
        return dataclasses.replace(self, f=self.f_isolated), y, [*consts, bad], bad

    @property
    def batch_dims(self) -> int:
        """Batch dims of the state once the mapped dims are merged into the first of them."""
        return max(self.context.batch_dims, 1) if self.mapped_sizes else self.context.batch_dims

    @property
    def independent(self) -> bool:
        """Whether no sample of the merged batch can influence another."""
        alone = bool(self.mapped_sizes) and not self.context.batch_dims
        return alone or self.context.independent

    def merged(self, leaves: Leaves) -> list[Tensor]:
        """Merge the mapped dims and the first batch dim into one."""
        if not self.mapped_sizes:
            return list(leaves)
        keep = len(self.mapped_sizes) + (1 if self.context.batch_dims else 0)
        return [leaf.reshape(-1, *leaf.shape[keep:]) for leaf in leaves]

    def split(self, leaves: Leaves, like: Leaves) -> list[Tensor]:
        """The inverse of `merged`."""
        return [leaf.reshape(old.shape) for leaf, old in zip(leaves, like, strict=True)]

    def structured(self, solution: Solution) -> Solution:
        """Give the value, a list of leaves, the structure of the caller's state."""
        assert self.context.structure is not None
        value = pytree.tree_unflatten(solution.value, self.context.structure)
        return dataclasses.replace(solution, value=value)

    def on_merged(self, apply: Callable[[Leaves], Leaves], like: Leaves) -> Callable[..., Any]:
        """Turn a map of leaves into one of merged leaves, as the solvers take it."""
        return lambda y: self.merged(apply(self.split(y, like)))

    def product(
        self, y: Leaves, consts: Leaves, transpose: bool
    ) -> Callable[[Leaves], list[Tensor]]:
        """Return the multiplication with J = df/dy, or with its transpose."""
        f = lambda y: self.f(y, consts)  # noqa: E731
        if transpose:
            vjp: Any = torch.func.vjp(f, list(y))[1]
            return lambda u: list(vjp(list(u))[0])
        return lambda t: list(jvp(f, list(y), list(t)))

    def apply_inverse(self, w: Leaves, y: Leaves, consts: Leaves, transpose: bool) -> list[Tensor]:
        """Multiply w by what the mode has in place of (I - J)^-1, or of its transpose."""
        if isinstance(self.mode, Exact):
            return list(_Linear.apply(self, transpose, *w, *y, *consts))
        assert isinstance(self.mode, AdjointMode)
        return list(self.mode.adjoint(self.product(y, consts, transpose), list(w), self.context))


def _with_outer_tangents(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Switch forward mode on in a rule, for transforms around it; torch switches it off there."""

    @functools.wraps(rule)
    def wrapped(*args: Any) -> Any:
        with set_fwd_grad_enabled(True):
            return rule(*args)

    return wrapped


class _Solve(torch.autograd.Function):
    """The solve as one operation: (y0, consts) -> (y*, residual, result, num_steps)."""

    @staticmethod
    @uncompiled
    def forward(problem: _Problem, *tensors: Tensor) -> tuple[Tensor, ...]:
        y0, consts = tensors[: problem.count], tensors[problem.count :]
        context = problem.context
        with torch.no_grad():
            solution = context.solver.iterate(
                problem.on_merged(lambda y: problem.f(y, consts), y0),
                problem.merged(y0),
                max_steps=context.max_steps,
                batch_dims=problem.batch_dims,
                independent=problem.independent,
                scale=context.scale,
            )
        if problem.throw:
            raise_if_failed(problem.structured(solution), problem.independent)
        problem.counts.append((solution.num_evals, solution.rows_evaluated))
        bad = bad_samples(solution.residual, solution.result)
        problem.some_bad.append(bool(bad.any()))
        shape = y0[0].shape[: len(problem.mapped_sizes) + context.batch_dims]
        evidence = (solution.residual, solution.result, solution.num_steps)
        # Fresh tensors, so that the caller may change the value in place.
        value = [leaf.clone() for leaf in problem.split(solution.value, y0)]
        return (*value, *(part.reshape(shape) for part in evidence))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        problem, *tensors = inputs
        ctx.problem = problem
        ctx.set_materialize_grads(False)  # so that None marks what has no derivative
        ctx.mark_non_differentiable(*output[problem.count :])
        residual, result, _ = output[problem.count :]
        saved = (residual, result, *output[: problem.count], *tensors[problem.count :])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    @uncompiled
    def backward(ctx: Any, *v: Tensor | None) -> Any:
        problem, y, consts, bad = ctx.problem.isolated(ctx, ctx.saved_tensors)
        wanted = ctx.needs_input_grad[1 + problem.count :]
        none = (None,) * (1 + problem.count)
        if not any(wanted):
            return (*none, *(None,) * len(wanted))
        asked = zeros_for_none(y, v[: problem.count])
        if bad is not None:
            asked, wanted = [nan_if_bad(bad, leaf) for leaf in asked], (*wanted, False)
        u = problem.apply_inverse(asked, y, consts, transpose=True)
        found = partial_vjp(lambda c: problem.f(y, c), consts, wanted, u)
        return (*none, *(found if bad is None else found[:-1]))

    @staticmethod
    @uncompiled
    @_with_outer_tangents
    def jvp(ctx: Any, *tangents: Any) -> Any:
        problem, y, consts, bad = ctx.problem.isolated(ctx, primals(ctx.saved_tensors))
        moving = [*tangents[1 + problem.count :], *([] if bad is None else [None])]
        t = partial_jvp(lambda c: problem.f(y, c), consts, moving, y)
        w = problem.apply_inverse(t, y, consts, transpose=False)
        if bad is not None:
            w = [torch.where(as_wide(bad, leaf), torch.nan, leaf) for leaf in w]
        return (*w, None, None, None)

    @staticmethod
    @uncompiled
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        problem, *tensors = inputs
        moved = mapped_dims_to_front(info, in_dims[1:], tensors, expand=problem.count)
        out = _Solve.apply(problem.mapped(info, in_dims[1 + problem.count :]), *moved)
        return out, (0,) * len(out)


class _Linear(torch.autograd.Function):
    """A linear solve as one operation: (w, y*, consts) -> x = w + A x, A being J or J^T."""

    @staticmethod
    @uncompiled
    def forward(problem: _Problem, transpose: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        w, y, consts = _split_in_three(problem, tensors)
        product = problem.product(y, consts, transpose)

        def step(x: Leaves) -> list[Tensor]:
            return [a + b for a, b in zip(w, product(x), strict=True)]

        context = dataclasses.replace(
            problem.context, batch_dims=problem.batch_dims, independent=problem.independent
        )
        assert isinstance(problem.mode, Exact)
        with torch.no_grad():
            merged = problem.on_merged(step, w)
            x = problem.mode.solve(merged, problem.merged(w), context, transposed=transpose)
        return tuple(leaf.clone() for leaf in problem.split(x, w))

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
        x, y, consts = _split_in_three(problem, ctx.saved_tensors)
        z = problem.apply_inverse(zeros_for_none(x, a), y, consts, transpose=not ctx.transpose)
        wanted = ctx.needs_input_grad[2 + problem.count :]
        return (None, None, *z, *partial_vjp(_bilinear(ctx, x), (*y, *consts), wanted, z))

    @staticmethod
    @uncompiled
    @_with_outer_tangents
    def jvp(ctx: Any, *tangents: Any) -> Any:
        problem: _Problem = ctx.problem
        x, y, consts = _split_in_three(problem, primals(ctx.saved_tensors))
        w, rest = tangents[2 : 2 + problem.count], tangents[2 + problem.count :]
        moved = partial_jvp(_bilinear(ctx, x), (*y, *consts), rest, x)
        rhs = [b if a is None else a + b for a, b in zip(w, moved, strict=True)]
        return tuple(problem.apply_inverse(rhs, y, consts, transpose=ctx.transpose))

    @staticmethod
    @uncompiled
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        problem, transpose, *tensors = inputs
        count = problem.count
        moved = mapped_dims_to_front(info, in_dims[2:], tensors, expand=2 * count)
        mapped = problem.mapped(info, in_dims[2 + 2 * count :])
        out = _Linear.apply(mapped, transpose, *moved)
        return out, (0,) * len(out)


def _bilinear(ctx: Any, x: Leaves) -> Callable[[Leaves], list[Tensor]]:
    """Return the map (y, consts) -> A(y, consts) x, to be differentiated at fixed x."""
    problem, transpose = ctx.problem, ctx.transpose

    def f(at: Leaves) -> list[Tensor]:
        return problem.product(at[: problem.count], at[problem.count :], transpose)(x)

    return f


def _saved(ctx: Any, saved: Leaves) -> tuple[Leaves, Leaves]:
    """Split what was saved into y* and the constants; approximate modes hold y* fixed."""
    y, consts = saved[: ctx.problem.count], saved[ctx.problem.count :]
    return (y if isinstance(ctx.problem.mode, Exact) else [leaf.detach() for leaf in y]), consts


def _split_in_three(problem: _Problem, tensors: Leaves) -> tuple[Leaves, Leaves, Leaves]:
    """Split tensors into two groups of the size of the state, and the rest."""
    n = problem.count
    return tensors[:n], tensors[n : 2 * n], tensors[2 * n :]
