"""Gradients by dense linear algebra, for maps small enough to write their Jacobian down."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from solvers.torch_internals import pytree
from solvers.types import State


def solve_densely(f: Callable[..., Tensor], y: Tensor, *args: Tensor, steps: int = 60) -> Tensor:
    """Find a fixed point by Newton's method on the whole state, without gradient."""
    for _ in range(steps):
        residual = (f(y, *args) - y).detach()
        if float(residual.abs().max()) < 1e-14:
            break
        jacobian = torch.autograd.functional.jacobian(lambda y: f(y, *args), y)
        size = y.numel()
        matrix = torch.eye(size, dtype=y.dtype) - jacobian.reshape(size, size)
        y = y + torch.linalg.solve(matrix, residual.flatten()).view_as(y)
    return y.detach()


def exact_inverse(jacobian: Tensor) -> Tensor:
    """The matrix (I - J)^-1."""
    return torch.linalg.inv(torch.eye(len(jacobian), dtype=jacobian.dtype) - jacobian)


def dense_gradient(
    f: Callable[..., Tensor],
    y_star: Tensor,
    args: tuple[Tensor, ...],
    v: Tensor,
    wanted: list[Tensor],
    inverse: Callable[[Tensor], Tensor] = exact_inverse,
) -> list[Tensor]:
    """Compute v^T (I - J)^-1 df/dtheta for each theta in `wanted`, or another `inverse` in it."""
    size = y_star.numel()
    jacobian = torch.autograd.functional.jacobian(lambda y: f(y, *args), y_star)
    u = (inverse(jacobian.reshape(size, size)).T @ v.flatten()).view_as(v)
    return list(torch.autograd.grad(f(y_star, *args), wanted, u, retain_graph=True))


def state_gradient(
    f: Callable[..., State],
    y_star: State,
    args: tuple[Tensor, ...],
    v: State,
    wanted: list[Tensor],
    inverse: Callable[[Tensor], Tensor] = exact_inverse,
) -> list[Tensor]:
    """Like `dense_gradient`, for a state of any structure: its leaves are joined to one vector."""
    leaves, spec = pytree.tree_flatten(y_star)

    def joined(y: Tensor, *args: Tensor) -> Tensor:
        parts = y.split([leaf.numel() for leaf in leaves])
        parts = [part.view_as(leaf) for part, leaf in zip(parts, leaves, strict=True)]
        return _join(f(pytree.tree_unflatten(parts, spec), *args))

    return dense_gradient(joined, _join(y_star), args, _join(v), wanted, inverse)


def relative_error(found: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    """Largest relative distance, in norm, of corresponding tensors."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, true, strict=True))


def _join(state: State) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in pytree.tree_leaves(state)])
