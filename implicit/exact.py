"""The exact gradient, by the implicit function theorem."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicit.base import BackwardMode, ClosedMap, SolveContext
from implicit.graft import graft
from implicit.registry import register
from solvers import FixedPointSolver, SolveError
from solvers.registry import SOLVERS
from solvers.types import State


@final
@register("exact")
@dataclass(frozen=True, kw_only=True)
class Exact(BackwardMode):
    """Differentiate the equation y = f(y) at its solution.

    With J = df/dy at y*, and v the cotangent of the output,

        u = v + J^T u,    dL/dtheta = u^T df/dtheta(y*)

    where the first, itself a fixed-point equation, goes to a solver of this library. Use it
    whenever it is affordable. Bias: of the order of the forward and the adjoint residuals,
    divided by 1 - |J|. Cost: two recorded calls of `f` in the forward pass (the second one
    makes second derivatives right), and one vector-Jacobian product per adjoint evaluation.
    Memory does not depend on the number of steps. Second derivatives are exact; a third one
    raises an error.

    Args:
        solver: Name or instance for the adjoint equation; by default the forward solver.
            Unless it is an instance, its tolerance is relative to u alone.
        max_steps: Budget of the adjoint solve; by default the forward budget.
        on_failure: If an adjoint sample does not converge: "warn" and use the best `u`
            found, or "raise" a `SolveError` out of the backward pass.

    Raises:
        ValueError: An unknown solver name or `on_failure`.

    References:
        S. Bai, J. Z. Kolter, V. Koltun, Deep Equilibrium Models, NeurIPS 2019, theorem 1.

    Example:
        >>> # f(y) = y / 2 + b has the solution 2b, so the gradient is 2.
        >>> b = torch.ones(1, 1, requires_grad=True)
        >>> Exact().attach(lambda y: y / 2 + b, 2 * b.detach()).backward()
        >>> round(b.grad.item(), 4)
        2.0
    """

    solver: str | FixedPointSolver | None = None
    max_steps: int | None = None
    on_failure: Literal["warn", "raise"] = "warn"

    def __post_init__(self) -> None:
        if self.solver is not None:
            SOLVERS.resolve(self.solver)
        if self.max_steps is not None and not (
            isinstance(self.max_steps, int) and self.max_steps >= 0
        ):
            raise ValueError(
                f"`max_steps` must be an integer of at least 0, got {self.max_steps!r}."
            )
        if self.on_failure not in ("warn", "raise"):
            raise ValueError(f"`on_failure` must be 'warn' or 'raise', got {self.on_failure!r}.")

    def attach(self, f: ClosedMap, y_star: State, context: SolveContext | None = None) -> State:
        """Attach the implicit gradient; twice, since the second derivative needs y*(theta)."""
        context = context or SolveContext()
        attached = self._attach_once(f, y_star, context)
        leaves, spec = pytree.tree_flatten(attached)
        if not any(leaf.requires_grad for leaf in leaves):
            return y_star
        # An alias, so that what comes back through `f` is one sum, to the last bit.
        alias = [leaf.view_as(leaf) for leaf in leaves]
        path = pytree.tree_leaves(f(pytree.tree_unflatten(alias, spec)))
        count = len(leaves)

        def pull(inputs: Sequence[Tensor], v: Sequence[Tensor]) -> list[Tensor | None]:
            path, alias = inputs[:count], inputs[count : 2 * count]
            u = self._solve(_adjoint_map(path, alias, v), v, context)
            if torch.is_grad_enabled():
                u = self._attach_once(_adjoint_map(path, alias, v), u, context)
            # To first order nothing may flow on to y*: cancel what `f` sends there.
            cancel = [None if g is None else -g for g in _pull_back(path, alias, u)]
            return [*u, *[None] * count, *cancel]

        return graft(y_star, [*path, *alias, *leaves], pull)

    def _attach_once(self, f: ClosedMap, y_star: State, context: SolveContext) -> State:
        """Attach a gradient that can be taken once, from one recorded call of `f`."""
        leaves, spec = pytree.tree_flatten(y_star)
        leaves = [leaf.detach() for leaf in leaves]
        path = pytree.tree_leaves(f(pytree.tree_unflatten(leaves, spec)))
        if not any(leaf.requires_grad for leaf in path):
            return y_star

        def pull(inputs: Sequence[Tensor], v: Sequence[Tensor]) -> list[Tensor | None]:
            if not any(bool(leaf.any()) for leaf in v):
                return [None] * len(v)
            with torch.enable_grad():
                start = [leaf.detach().requires_grad_() for leaf in leaves]
                end = pytree.tree_leaves(f(pytree.tree_unflatten(start, spec)))
            u = self._solve(_adjoint_map(end, start, v), v, context)
            return [_Final.apply(leaf, v[0]) for leaf in u]

        return graft(y_star, path, pull)

    def _adjoint_solver(self, context: SolveContext) -> FixedPointSolver:
        if isinstance(self.solver, FixedPointSolver):
            return self.solver
        solver = context.solver if self.solver is None else SOLVERS.get(self.solver)
        # The forward `atol` has the units of y; u has those of the loss over y, so that a loss
        # divided by a large batch would end the solve at once. Relative tolerance only.
        return dataclasses.replace(solver, rtol=solver.rtol + solver.atol, atol=0.0)

    def _solve(
        self,
        adjoint: Callable[[list[Tensor]], list[Tensor]],
        v: Sequence[Tensor],
        context: SolveContext,
    ) -> list[Tensor]:
        solver = self._adjoint_solver(context)
        max_steps = context.max_steps if self.max_steps is None else self.max_steps
        with torch.no_grad():
            solution = solver.iterate(
                adjoint, list(v), max_steps=max_steps, batch_dims=context.batch_dims
            )
        context.adjoints.append(solution)
        if not bool(solution.converged.all()):
            if self.on_failure == "raise":
                raise SolveError(solution)
            warnings.warn(
                f"The gradient is approximate: the adjoint equation u = v + J^T u failed. "
                f"{solution.describe()}",
                stacklevel=2,
            )
        return solution.value


def _adjoint_map(
    path: Sequence[Tensor], anchor: Sequence[Tensor], v: Sequence[Tensor]
) -> Callable[[list[Tensor]], list[Tensor]]:
    """Map u to v + J^T u with J = d path / d anchor, itself recorded if grad mode is on."""

    def adjoint(u: list[Tensor]) -> list[Tensor]:
        pulled = _pull_back(path, anchor, u)
        return [old if new is None else old + new for old, new in zip(v, pulled, strict=True)]

    return adjoint


def _pull_back(
    path: Sequence[Tensor], anchor: Sequence[Tensor], u: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """J^T u with J = d path / d anchor; None where nothing depends on an anchor."""
    recorded = [i for i, leaf in enumerate(path) if leaf.requires_grad]
    if not recorded:
        return [None] * len(anchor)
    return torch.autograd.grad(
        [path[i] for i in recorded],
        list(anchor),
        [u[i] for i in recorded],
        retain_graph=True,
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
    )


class _Final(torch.autograd.Function):
    """Identity that refuses to be differentiated, where a derivative would be wrong."""

    @staticmethod
    def forward(ctx: object, value: Tensor, cause: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: object, *v: Tensor) -> None:
        raise NotImplementedError(
            "`exact` has first and second derivatives only. For a third one use "
            "`backward='unrolled'`."
        )
