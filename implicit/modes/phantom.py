"""The phantom gradient: a short damped unroll from the solution."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from implicit.base import BackwardMode, ClosedMap, SolveContext
from solvers.checks import check_damping, check_integer
from solvers.torch_internals import pytree
from solvers.types import State


@final
@dataclass(frozen=True, kw_only=True)
class Phantom(BackwardMode):
    """Backpropagate through a short damped unroll that starts at the solution.

    Records `steps` applications of g(y) = damping * y + (1 - damping) * f(y) from the
    detached solution y*, and returns the last one. Its cotangent then meets, transposed,

        (1 - damping) * sum_{i < steps} H^i,    H = damping * I + (1 - damping) * J

    in place of (I - J)^-1, with J = df/dy at y*. This is the true gradient of the value, given
    y*, even where the solve stopped early, which suits segment-wise training of reasoning
    models. Without grad mode nothing is recorded and the value is the solver's own point. Bias:
    shrinks as rho(H)^steps, rho the spectral radius; `steps=1, damping=0` gives the
    Jacobian-free gradient. Cost: `steps` recorded calls of `f`; no linear solve.

    Args:
        steps: Recorded applications, at least 1.
        damping: Weight kept on the old iterate, in [0, 1).

    Raises:
        ValueError: An option is out of its range.

    References:
        Z. Geng et al., On Training Implicit Models, NeurIPS 2021, arXiv:2111.05177, sec. 3.

    Example:
        >>> # f(y) = y / 2 + b has the solution 2b, so the exact gradient is 2.
        >>> b = torch.ones(1, 1, requires_grad=True)
        >>> Phantom(steps=3).attach(lambda y: y / 2 + b, y_star=2 * b.detach()).backward()
        >>> b.grad.item()
        1.75
    """

    moves_value: ClassVar[bool] = True

    steps: int = 4
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_damping(self.damping)
        check_integer("steps", self.steps, 1)

    @property
    def bias(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The norm of H to the power of `steps`, for a J of norm 0.6."""
        return (self.damping + 0.6 * (1 - self.damping)) ** self.steps

    def in_place_of_inverse(self, jacobian: torch.Tensor) -> torch.Tensor:
        """The sum of the powers of H, weighted as in the class docstring."""
        eye = torch.eye(len(jacobian), dtype=jacobian.dtype)
        h = self.damping * eye + (1 - self.damping) * jacobian
        total = power = eye
        for _ in range(self.steps - 1):
            power = power @ h
            total = total + power
        return (1 - self.damping) * total

    def attach(self, f: ClosedMap, y_star: State, context: SolveContext | None = None) -> State:
        """Record the unroll and return its last iterate."""
        y = pytree.tree_map(lambda leaf: leaf.detach(), y_star)
        for _ in range(self.steps):
            fy = f(y)
            y = pytree.tree_map(self._mix, fy, y) if self.damping else fy
        return y

    def _mix(self, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        return torch.lerp(new, old, self.damping)
