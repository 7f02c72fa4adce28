"""The Jacobian-free gradient: the cotangent takes the place of the adjoint solution."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from implicit.autograd import attach_vjp
from implicit.base import AdjointMode, ClosedMap, Product, SolveContext
from solvers.torch_internals import pytree
from solvers.types import State


@final
@dataclass(frozen=True, kw_only=True)
class JacobianFree(AdjointMode):
    """Backpropagate through one application of `f` at the solution.

        u = v    in place of    u = v + J^T u

    Cheap, and accurate enough where the Jacobian at the solution is small, as in language
    models; not for puzzles. Bias: of relative size |J|, so 50 % and more on
    stiff maps, though often still a descent direction. Cost: one recorded call of `f`.

    References:
        S. W. Fung et al., JFB: Jacobian-Free Backpropagation for Implicit Networks, AAAI
        2022, arXiv:2103.12803, eq. 7.

    Example:
        >>> import torch
        >>> # f(y) = y / 2 + b has the solution 2b; the true gradient is 2.
        >>> b = torch.ones(1, 1, requires_grad=True)
        >>> JacobianFree().attach(lambda y: y / 2 + b, 2 * b.detach()).backward()
        >>> b.grad.item()
        1.0
    """

    bias: ClassVar[float] = 0.7

    def in_place_of_inverse(self, jacobian: Tensor) -> Tensor:
        """The identity matrix."""
        return torch.eye(len(jacobian), dtype=jacobian.dtype)

    def adjoint(
        self, product: Product, v: Sequence[Tensor], context: SolveContext
    ) -> Sequence[Tensor]:
        """Return the cotangent itself."""
        return v

    def attach(self, f: ClosedMap, y_star: State, context: SolveContext | None = None) -> State:
        """Record one call of `f`, without its dependence on the state, which is not needed."""
        fy = f(pytree.tree_map(lambda leaf: leaf.detach(), y_star))
        return attach_vjp(y_star, pytree.tree_leaves(fy), lambda _inputs, v: v)
