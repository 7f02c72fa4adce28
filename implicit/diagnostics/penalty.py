"""A loss term that keeps the Jacobian of a map small."""

from typing import Any

import torch
from torch import Tensor

from implicit.diagnostics.jacobian import flat_map
from solvers.checks import check_integer
from solvers.packing import StatePacking
from solvers.types import Map, State


def jacobian_penalty(
    f: Map,
    y: State,
    *args: Any,
    num_probes: int = 1,
    detach: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate the squared Frobenius norm of J = df/dy at `y` per entry, as a loss term.

        |J|_F^2 / n = E |J^T v|^2 / n,    v: n random signs,    n: entries of `y`, all samples

    Added to a loss with a small weight, it makes a fixed point easier to solve for. It
    bounds no spectral radius: the mean of |lambda|^2 over the eigenvalues is at most the
    penalty, while a single one may be large. Gradients reach all that `f` closes over and
    `args`. `y` counts as a constant unless `detach=False`: the penalty then acts on the
    local slope of `f` and not on where the solution lies, and needs no adjoint solve. Samples
    may be coupled; no batch dim is singled out, and a NaN in one sample makes the result NaN.
    Two calls of the same `f` and `y` differ by the noise of their probes.

    The estimate is unbiased. Random signs have less variance than the normal numbers of the
    paper. Cost: one recorded call of `f`, a backward pass per probe, and a second-order
    backward pass per probe in training. Without grad mode the result carries no gradient.

    Args:
        f: The map; returns the structure, shapes and dtypes of its first argument.
        y: The point, usually a solution; a tensor or a pytree of tensors.
        *args: Per-sample tensors, passed on to `f`.
        num_probes: Random vectors to average over, at least 1. The standard deviation falls
            with its square root, and also with that of the number of samples.
        detach: Treat `y` as a constant. With False the gradient also follows `y`.
        generator: Draws the probes, on its own device; by default the global one.

    Returns:
        A scalar of at least 0, in at least float32.

    Raises:
        ValueError: `num_probes` is below 1, or `f` changed the shape.
        TypeError: `y` is not floating point, or `f` changed dtype or structure.

    References:
        S. Bai, V. Koltun, J. Z. Kolter, Stabilizing Equilibrium Models by Jacobian
        Regularization, ICML 2021, arXiv:2106.14342, sec. 4.
        M. F. Hutchinson, Communications in Statistics 19 (2), 1990, for the probes.

    Example:
        >>> weight = torch.full((1,), 0.5, requires_grad=True)
        >>> penalty = jacobian_penalty(lambda y: weight * y, torch.ones(2, 3))
        >>> penalty.backward()
        >>> penalty.item(), weight.grad.item()
        (0.25, 1.0)
    """
    check_integer("num_probes", num_probes, 1)
    packing = StatePacking(y, 0)
    closed = flat_map(f, args, packing)
    record = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(packing.device.type, enabled=False):
        point = packing.pack(y)
        if detach or not point.requires_grad:
            point = point.detach().requires_grad_()
        value = closed(point)
        total = point.new_zeros(())
        for _ in range(num_probes if value.requires_grad else 0):
            (product,) = torch.autograd.grad(
                value, point, _signs(value, generator), retain_graph=True, create_graph=record,
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            total = total + product.square().sum()
    return total / (num_probes * max(point.numel(), 1))


def _signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator else like.device
    bits = torch.randint(2, like.shape, generator=generator, device=device)
    return (2 * bits - 1).to(like)
