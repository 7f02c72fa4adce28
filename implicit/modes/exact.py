"""The exact gradient, by the implicit function theorem."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from implicit.autograd import attach_vjp, recorded_vjp
from implicit.base import AdjointMode, ClosedMap, Product, SolveContext
from implicit.modes.adjoint import (
    AffineMap,
    Preconditioner,
    adjoint_solver,
    on_leaves,
    preconditioned,
    record_evidence,
    solve_affine,
    solve_affine_in_graph,
    warn_of_failure,
)
from implicit.modes.warm_start import WarmStart
from solvers import FixedPointSolver, SolveError
from solvers.registry import LINEAR, SOLVERS, unknown
from solvers.torch_internals import pytree
from solvers.trees import as_wide
from solvers.types import State


@final
@dataclass(frozen=True, kw_only=True)
class Exact(AdjointMode):
    """Differentiate the equation y = f(y) at its solution.

    With J = df/dy at y*, and v the cotangent of the output,

        u = v + J^T u,    dL/dtheta = u^T df/dtheta(y*)

    where the first equation, itself a fixed-point equation, goes to a solver of this library.
    Use this mode whenever you can afford it. Bias: of the order of the forward and the adjoint
    residuals, divided by 1 - |J|. Cost: two recorded calls of `f` in the forward pass (the second
    one makes second derivatives right), and one vector-Jacobian product per adjoint evaluation.
    Memory does not depend on the number of steps. Second derivatives are exact; a third one
    raises an error, except under `torch.func`, where all orders and both directions work.

    Args:
        solver: Name or instance for the adjoint equation, of `solvers.names()` or
            `solvers.linear_names()`; by default the forward solver. Its tolerances are
            relative to v: rms(v + J^T u - u) <= rtol * rms(v), with the forward rtol + atol
            for its rtol unless it is an instance. Newton's method on a linear equation is one
            solve by GMRES, so `newton_krylov` stands for `gmres` with `history=inner_steps`
            and as many steps for each of the budget.
        max_steps: Budget of the adjoint solve; by default the forward budget.
        on_failure: What to do if the adjoint of a sample does not converge. "warn": warn, and
            use the best `u` found. "raise": raise a `SolveError` from the backward pass.
            "jacobian_free": warn, and use u = v for that sample.
        preconditioner: A linear map M, near (I - J^T)^-1, from cotangents to cotangents: it
            gets and returns the state's structure and shapes, for all samples at once. The
            equation is solved for w with u = M w, whose residual is that of u, so that M
            changes the number of steps and not the gradient. It is not used for the equations
            with J itself, which second derivatives and forward mode solve.
        warm_start: Keeps the last adjoint solution as the start of the next adjoint solve; by
            default it starts at v. This pays off when the same batch is used again, as in
            full-batch training.

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

    solves_adjoint: ClassVar[bool] = True

    solver: str | FixedPointSolver | None = None
    max_steps: int | None = None
    on_failure: Literal["warn", "raise", "jacobian_free"] = "warn"
    warm_start: WarmStart | None = None
    preconditioner: Preconditioner | None = None

    @property
    def fits_graph(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Without what reads or keeps something in the backward pass."""
        kept = self.warm_start is not None or self.preconditioner is not None
        return not kept and self.on_failure != "raise"

    def __post_init__(self) -> None:
        if isinstance(self.solver, str):
            # Names of this library first: within a graph, entry points cannot be read.
            ours = self.solver in SOLVERS.entries or self.solver in LINEAR.entries
            if not ours and self.solver not in SOLVERS and self.solver not in LINEAR:
                known = [*SOLVERS.names(), *LINEAR.names()]
                raise ValueError(unknown("solver", self.solver, known, "Registered"))
        elif self.solver is not None:
            SOLVERS.resolve(self.solver)
        if self.max_steps is not None and not (
            isinstance(self.max_steps, int) and self.max_steps >= 0
        ):
            raise ValueError(
                f"`max_steps` must be an integer of at least 0, got {self.max_steps!r}."
            )
        if self.preconditioner is not None and not callable(self.preconditioner):
            raise TypeError(
                "`preconditioner` must be a function from a cotangent to one of the same "
                f"structure: got {self.preconditioner!r}."
            )
        if self.on_failure not in ("warn", "raise", "jacobian_free"):
            raise ValueError(
                f"`on_failure` must be 'warn', 'raise' or 'jacobian_free', got {self.on_failure!r}."
            )

    def attach(self, f: ClosedMap, y_star: State, context: SolveContext | None = None) -> State:
        """Attach the gradient twice, since second derivatives also need y* as a function."""
        spec = pytree.tree_structure(y_star)
        context = dataclasses.replace(context or SolveContext(), structure=spec)
        attached = self._attach_once(f, y_star, context)
        leaves = pytree.tree_leaves(attached)
        if not any(leaf.requires_grad for leaf in leaves):
            return y_star
        # Aliases collect what comes back through `f` into one sum, which `cancel` below subtracts
        # to the last bit.
        alias = [leaf.view_as(leaf) for leaf in leaves]
        fy = pytree.tree_leaves(f(pytree.tree_unflatten(alias, spec)))
        count = len(leaves)

        def vjp(inputs: Sequence[Tensor], v: Sequence[Tensor]) -> list[Tensor | None]:
            fy, alias = inputs[:count], inputs[count : 2 * count]
            u = self.solve(_adjoint_map(fy, alias, v), v, context)
            if torch.is_grad_enabled():
                u = self._attach_once(_adjoint_map(fy, alias, v), u, context)
            # To first order nothing may flow on to y*, so cancel what `f` sends there.
            cancel = [None if g is None else -g for g in recorded_vjp(fy, alias, u)]
            return [*u, *[None] * count, *cancel]

        return attach_vjp(y_star, [*fy, *alias, *leaves], vjp)

    def _attach_once(self, f: ClosedMap, y_star: State, context: SolveContext) -> State:
        """Attach a gradient that can be taken once, from one recorded call of `f`."""
        leaves, spec = pytree.tree_flatten(y_star)
        leaves = [leaf.detach() for leaf in leaves]
        fy = pytree.tree_leaves(f(pytree.tree_unflatten(leaves, spec)))
        if not any(leaf.requires_grad for leaf in fy):
            return y_star

        def vjp(inputs: Sequence[Tensor], v: Sequence[Tensor]) -> list[Tensor | None]:
            zero = not any(bool(leaf.any()) for leaf in v)
            if zero and not any(leaf.requires_grad for leaf in v):
                return [None] * len(v)
            with torch.enable_grad():
                y = [leaf.detach().requires_grad_() for leaf in leaves]
                fy = pytree.tree_leaves(f(pytree.tree_unflatten(y, spec)))
            u = list(v) if zero else self.solve(_adjoint_map(fy, y, v), v, context)
            if not torch.is_grad_enabled():
                return [*u]
            # The result is linear in v, which torch.autograd.functional.hvp relies on. Its
            # derivative with respect to `inputs` is refused, unless v, to which it is
            # proportional, is zero.
            rest = [] if zero else [_Final.apply(leaf) for leaf in inputs]

            def jvp(_: Sequence[Tensor], a: Sequence[Tensor]) -> list[Tensor | None]:
                return [*self._solve_forward(fy, y, a, context), *[None] * len(rest)]

            return list(attach_vjp(u, [*v, *rest], jvp))

        return attach_vjp(y_star, fy, vjp)

    def _solve_forward(
        self,
        fy: Sequence[Tensor],
        y: Sequence[Tensor],
        a: Sequence[Tensor],
        context: SolveContext,
    ) -> list[Tensor]:
        """Solve z = a + J z with J = d fy / d y, by reverse mode applied twice."""
        with torch.enable_grad():
            w = [torch.zeros_like(leaf, requires_grad=True) for leaf in fy]
            products = recorded_vjp(fy, y, w)
        back = [leaf if g is None else g for g, leaf in zip(products, a, strict=True)]
        z = self.solve(_adjoint_map(back, w, a), a, context, transposed=False)
        return [_Final.apply(leaf) for leaf in z]

    def adjoint(
        self, product: Product, v: Sequence[Tensor], context: SolveContext
    ) -> Sequence[Tensor]:
        """Solve u = v + J^T u."""

        def step(u: list[Tensor]) -> list[Tensor]:
            return [old + new for old, new in zip(v, product(u), strict=True)]

        return self.solve(step, v, context)

    def adjoint_in_graph(
        self, product: Product, v: Sequence[Tensor], context: SolveContext
    ) -> Sequence[Tensor]:
        """As `adjoint`, by the loop of `solvers.graph`; a failed sample is not told of."""
        solver, max_steps = adjoint_solver(self.solver, self.max_steps, context)

        def step(u: list[Tensor]) -> list[Tensor]:
            return [old + new for old, new in zip(v, product(u), strict=True)]

        u, converged = solve_affine_in_graph(step, v, solver, max_steps, context)
        if self.on_failure == "warn":
            return u
        return [torch.where(as_wide(converged, a), a, b) for a, b in zip(u, v, strict=True)]

    def solve(
        self,
        affine: AffineMap,
        v: Sequence[Tensor],
        context: SolveContext,
        *,
        transposed: bool = True,
    ) -> list[Tensor]:
        """Find the fixed point of an affine map with constant part v, and record the evidence."""
        solver, max_steps = adjoint_solver(self.solver, self.max_steps, context)
        start = list(v)
        if self.warm_start is not None:
            start = self.warm_start.start(v, context.batch_dims)
        if self.preconditioner is None or not transposed:
            u, solution = solve_affine(affine, v, start, solver, max_steps, context)
            w = u
        else:
            apply = on_leaves(self.preconditioner, context)
            mapped = preconditioned(affine, apply)
            w, solution = solve_affine(mapped, v, start, solver, max_steps, context)
            with torch.no_grad():
                u = apply(w)
        if self.warm_start is not None:
            self.warm_start.keep(w)
        evidence = record_evidence(u, solution, context)
        if bool(evidence.converged.all()):
            return u
        if self.on_failure == "raise":
            raise SolveError(evidence)
        warn_of_failure(evidence, solver, max_steps, context)
        if self.on_failure == "warn":
            return u
        kept = evidence.converged
        return [torch.where(as_wide(kept, new), new, old) for new, old in zip(u, v, strict=True)]


def _adjoint_map(
    fy: Sequence[Tensor], y: Sequence[Tensor], v: Sequence[Tensor]
) -> Callable[[list[Tensor]], list[Tensor]]:
    """Make the map from u to v + J^T u with J = d fy / d y, itself recorded in grad mode."""

    def adjoint(u: list[Tensor]) -> list[Tensor]:
        products = recorded_vjp(fy, y, u)
        return [old if new is None else old + new for old, new in zip(v, products, strict=True)]

    return adjoint


class _Final(torch.autograd.Function):
    """The identity, which raises an error if differentiated, as the derivative would be wrong."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: object, *v: Tensor) -> None:
        raise NotImplementedError(
            "`exact` has first and second derivatives only. For a third one use "
            "`backward='unrolled'`."
        )
