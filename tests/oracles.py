"""Gradients by dense linear algebra, for maps small enough to write their Jacobian down."""

from collections.abc import Callable

import torch
from torch import Tensor


def solve_densely(f: Callable[..., Tensor], y: Tensor, *args: Tensor, steps: int = 60) -> Tensor:
    """A fixed point by Newton's method on the whole state, without gradient."""
    for _ in range(steps):
        residual = (f(y, *args) - y).detach()
        if float(residual.abs().max()) < 1e-14:
            break
        jacobian = torch.autograd.functional.jacobian(lambda y: f(y, *args), y)
        size = y.numel()
        matrix = torch.eye(size, dtype=y.dtype) - jacobian.reshape(size, size)
        y = y + torch.linalg.solve(matrix, residual.flatten()).view_as(y)
    return y.detach()


def dense_gradient(
    f: Callable[..., Tensor],
    y_star: Tensor,
    args: tuple[Tensor, ...],
    v: Tensor,
    wanted: list[Tensor],
) -> list[Tensor]:
    """v^T (I - J)^-1 df/dtheta for each theta in `wanted`."""
    size = y_star.numel()
    jacobian = torch.autograd.functional.jacobian(lambda y: f(y, *args), y_star)
    matrix = torch.eye(size, dtype=y_star.dtype) - jacobian.reshape(size, size)
    u = torch.linalg.solve(matrix.T, v.flatten()).view_as(v)
    return list(torch.autograd.grad(f(y_star, *args), wanted, u, retain_graph=True))
