"""SHINE: the gradient by the inverse estimate of a quasi-Newton solver."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from implicit.base import AdjointMode, ClosedMap, Product, SolveContext
from solvers.packing import StatePacking
from solvers.registry import SOLVERS
from solvers.types import State


@final
@dataclass(frozen=True, kw_only=True)
class Shine(AdjointMode):
    """Share the inverse estimate of the forward solve with the backward pass.

        u = B^-T v,    B^-1 the estimate of (I - J)^-1 at the end of the solve

    There is no adjoint solve at all. The estimate is good along the directions that the solve
    explored, and the identity elsewhere. Where it makes |u| larger than `fallback` * |v|, it
    is not trusted, and that sample gets the Jacobian-free u = v. The mode needs a solver that
    has such an estimate, as Broyden (the paper's) and Anderson do, and no sample leaves the
    batch during the solve. Bias: that of the estimate; measure it with `exact` before relying
    on it. Cost: one recorded call of `f`, no products with J.

    Args:
        fallback: Largest trusted |u| / |v|, per sample, above 0; the paper uses 1.3. At a
            spectral radius rho the true ratio is up to 1 / (1 - rho): raise it for stiff maps.

    Raises:
        ValueError: `fallback` is not above 0; or, when used, a solver without an estimate.

    References:
        Z. Ramzi et al., SHINE: SHaring the INverse Estimate from the Forward Pass for
        Bi-level Optimization and Implicit Models, ICLR 2022, arXiv:2106.00553, sec. 2.

    Example:
        >>> from implicit import fixed_point
        >>> b = torch.ones(1, 1, requires_grad=True)
        >>> f = lambda y: torch.tanh(y / 2 + b)
        >>> s = fixed_point(f, torch.zeros(1, 1), solver="broyden", backward=Shine(fallback=9))
        >>> s.value.sum().backward()
        >>> round(b.grad.item(), 2)
        0.22
    """

    fits_graph: ClassVar[bool] = False
    needs_memory: ClassVar[bool] = True
    bias: ClassVar[float] = 0.7

    fallback: float = 1.3

    def __post_init__(self) -> None:
        if not (isinstance(self.fallback, int | float) and self.fallback > 0):
            raise ValueError(f"`fallback` must be above 0, got {self.fallback!r}.")

    def attach(self, f: ClosedMap, y_star: State, context: SolveContext | None = None) -> State:
        """Record one call of `f`; the value stays `y_star`."""
        if context is None or not context.solver.estimates_inverse:
            name = "no solve" if context is None else type(context.solver).__name__
            able = sorted(n for n, cls in SOLVERS.classes().items() if cls.estimates_inverse)
            raise ValueError(
                f"`shine` reuses the inverse estimate of the forward solve: got {name}, which has "
                f"none. Solvers that have one: {', '.join(able)}."
            )
        return super().attach(f, y_star, context)

    def adjoint(
        self, product: Product, v: Sequence[Tensor], context: SolveContext
    ) -> Sequence[Tensor]:
        """Apply the transposed estimate that each sample had when it stopped."""
        packing = StatePacking(list(v), context.batch_dims)
        flat = packing.pack(list(v))
        u = flat
        with torch.autocast(flat.device.type, enabled=False):
            for samples, memory in context.memory:
                found = memory.transposed_inverse(flat.index_select(0, samples))
                u = u.index_copy(0, samples, found)
        norm, bound = (torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (u, flat))
        trusted = norm <= self.fallback * bound
        return packing.unpack(torch.where(trusted, u, flat))
