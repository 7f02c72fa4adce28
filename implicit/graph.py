"""`fixed_point` as part of one compiled graph, forward and backward.

The solve is the loop of `solvers.graph`, without gradients. Afterwards `f` is recorded at the
solution as in `implicit.autograd`, but a backward pass within a graph can neither walk a recorded
graph nor keep evidence of what happened. So products with J^T come from `torch.func.vjp`, which
calls `f` anew; nothing is appended to `Solution.adjoints`, and nothing warns.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from implicit.base import AdjointMode, BackwardMode, ClosedMap, SolveContext
from implicit.isolation import Isolation, bad_samples
from solvers import Solution
from solvers.counted_map import CheckedMap
from solvers.graph import solve_in_graph
from solvers.packing import StatePacking
from solvers.torch_internals import pytree
from solvers.types import Map, State


def fixed_point_in_graph(
    f: Map, y0: State, args: tuple[Any, ...], *, mode: BackwardMode, **options: Any
) -> Solution:
    """Solve in a graph, with the options of `solvers.graph.GraphLoop`, and attach the gradient."""
    solution = solve_in_graph(f, y0, args, **options)
    if not torch.is_grad_enabled():
        return solution
    context = SolveContext(**options)
    checked = CheckedMap(f, StatePacking(y0, context.batch_dims))
    bad = bad_samples(solution.residual, solution.result)
    value = _attached(mode, checked, solution.value, args, bad, context)
    return dataclasses.replace(solution, value=value)


def _attached(
    mode: BackwardMode,
    f: CheckedMap,
    y_star: State,
    args: tuple[Any, ...],
    bad: Tensor,
    context: SolveContext,
) -> State:
    """Attach the gradient of a mode, without contributions of bad samples; see `isolation`."""
    isolation = Isolation.of(bad, args, context.independent)
    clean, good_args = isolation.state(y_star), isolation.args(args)
    frozen = isolation.frozen(lambda y: f(y, *good_args), clean)
    return isolation.merged(_attach(mode, frozen, clean, context), y_star)


def _attach(mode: BackwardMode, f: ClosedMap, y_star: State, context: SolveContext) -> State:
    if not isinstance(mode, AdjointMode):
        return mode.attach(f, y_star, context)
    leaves, spec = pytree.tree_flatten(y_star)
    # Copies, since what a loop in the backward pass is given may not share memory with `y_star`.
    leaves = [leaf.detach().clone() for leaf in leaves]

    def on_leaves(*y: Tensor) -> list[Tensor]:
        return pytree.tree_leaves(f(pytree.tree_unflatten(list(y), spec)))

    rule = _adjoint_rule(mode, on_leaves, context)
    attached = _Attach.apply(rule, len(leaves), *leaves, *on_leaves(*leaves))
    return pytree.tree_unflatten(list(attached), spec)


Rule = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


def _adjoint_rule(mode: AdjointMode, f: Callable[..., list[Tensor]], context: SolveContext) -> Rule:
    """The rule from the solution and a cotangent to the adjoint of a mode."""

    def rule(y: Sequence[Tensor], v: Sequence[Tensor]) -> Sequence[Tensor]:
        def product(u: Sequence[Tensor]) -> list[Tensor]:
            # Within the loop of `exact` nothing may be recorded outside of it.
            found: Any = torch.func.vjp(f, *y)
            return list(found[1](list(u)))

        return mode.adjoint_in_graph(product, v, context)

    return rule


class _Attach(torch.autograd.Function):
    """As `implicit.autograd.attach_vjp`, with a rule that starts from the value."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.rule, ctx.count = rule, count
        ctx.save_for_backward(*tensors[:count])
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> Any:
        return (None, None, *(None,) * ctx.count, *ctx.rule(ctx.saved_tensors, v))
