"""A map as a function of matrices, and products with its Jacobian."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from solvers.derivatives import jvp
from solvers.packing import StatePacking
from solvers.types import Flat, Map

FlatMap: TypeAlias = Callable[[Flat], Flat]


def flat_map(f: Map, args: tuple[Any, ...], layout: StatePacking) -> FlatMap:
    """`f(., *args)` from matrix to matrix, under the autocast of whoever calls this function.

    What the result calls outside `f` is in the caller's grad mode and in full precision, if
    the caller has switched autocast off by then.
    """
    device = layout.device.type
    autocast, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def flat(y: Flat) -> Flat:
        state = layout.unpack(y)
        with torch.autocast(device, dtype=dtype, enabled=autocast):
            returned = f(state, *args)
        return layout.pack(layout.accept(state, returned, autocast))

    return flat


def jacobian_product(f: FlatMap, y: Flat) -> FlatMap:
    """Make v -> J v at `y`, by forward mode: one call of `f` per product, no graph."""

    def product(v: Flat) -> Flat:
        try:
            return jvp(f, y, v)
        except NotImplementedError as error:
            error.add_note("Pass `product='vjp'`, which does without forward mode.")
            raise

    return product


def transposed_product(f: FlatMap, y: Flat) -> FlatMap:
    """Make v -> J^T v at `y`, by reverse mode: one recorded call of `f` for all products."""
    with torch.inference_mode(False), torch.enable_grad():
        y = y.detach().clone().requires_grad_()
        fy = f(y)
    if not fy.requires_grad:  # `f` ignores its state, which autograd would refuse
        return torch.zeros_like

    def product(v: Flat) -> Flat:
        return torch.autograd.grad(
            fy, y, v, retain_graph=True, allow_unused=True, materialize_grads=True
        )[0]

    return product
