"""The Neumann gradient: a truncated series in place of the adjoint equation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from implicit.base import AdjointMode, Product, SolveContext
from solvers.checks import check_integer
from solvers.packing import StatePacking


@final
@dataclass(frozen=True, kw_only=True)
class Neumann(AdjointMode):
    """Sum the first terms of the Neumann series of the inverse.

        u = v + J^T v + ... + (J^T)^terms v    in place of    (I - J^T)^-1 v

    The gradient of `phantom` with terms + 1 undamped steps, but the value stays the solver's
    and only one call of `f` is recorded. Bias: shrinks as rho(J)^terms, rho the spectral
    radius; does not converge where rho is 1 or more, for which there is `clip`. Cost: one
    recorded call of `f` and `terms` vector-Jacobian products.

    Args:
        terms: Products with J^T, at least 0; 0 is the Jacobian-free gradient.
        clip: Upper bound of |u| as a multiple of |v|, per sample, above 0; None for no bound.

    Raises:
        ValueError: An option is out of its range.

    References:
        J. Lorraine, P. Vicol, D. Duvenaud, Optimizing Millions of Hyperparameters by Implicit
        Differentiation, AISTATS 2020, arXiv:1911.02590, sec. 3.2.

    Example:
        >>> # f(y) = y / 2 + b has the solution 2b, so the exact gradient is 2.
        >>> b = torch.ones(1, 1, requires_grad=True)
        >>> Neumann(terms=2).attach(lambda y: y / 2 + b, 2 * b.detach()).backward()
        >>> b.grad.item()
        1.75
    """

    terms: int = 8
    clip: float | None = None

    def __post_init__(self) -> None:
        check_integer("terms", self.terms, 0)
        if self.clip is not None and not (isinstance(self.clip, int | float) and self.clip > 0):
            raise ValueError(f"`clip` must be above 0, or None for no bound: got {self.clip!r}.")

    @property
    def bias(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The norm of the first power of J that the series leaves out, for a J of norm 0.6."""
        return 0.6 ** (self.terms + 1)

    def in_place_of_inverse(self, jacobian: Tensor) -> Tensor | None:
        """The truncated series, or None (unknown) where it may be clipped."""
        if self.clip is not None:
            return None
        total = power = torch.eye(len(jacobian), dtype=jacobian.dtype)
        for _ in range(self.terms):
            power = power @ jacobian
            total = total + power
        return total

    def adjoint(
        self, product: Product, v: Sequence[Tensor], context: SolveContext
    ) -> Sequence[Tensor]:
        """Sum the series, then bound its norm."""
        u = term = list(v)
        for _ in range(self.terms):
            term = product(term)
            u = [old + new for old, new in zip(u, term, strict=True)]
        return u if self.clip is None else self._clipped(u, v, context.batch_dims, self.clip)

    def _clipped(
        self, u: Sequence[Tensor], v: Sequence[Tensor], batch_dims: int, clip: float
    ) -> Sequence[Tensor]:
        packing = StatePacking(list(v), batch_dims)
        flat, bound = packing.pack(u), packing.pack(v)
        most = clip * torch.linalg.vector_norm(bound, dim=1, keepdim=True)
        norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        share = (most / torch.where(norm > 0, norm, 1.0)).clamp(max=1.0)
        return packing.unpack(flat * share)
