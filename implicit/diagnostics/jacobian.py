"""A map as a function of matrices, and products with its Jacobian."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from solvers.call_errors import explain
from solvers.counted_map import FROM_MAP, CheckedMap
from solvers.derivatives import jvp
from solvers.packing import StatePacking
from solvers.types import Flat, Map

FlatMap: TypeAlias = Callable[[Flat], Flat]


def flat_map(f: Map, args: tuple[Any, ...], packing: StatePacking) -> FlatMap:
    """Turn `f(., *args)` into a map of matrices that runs under the autocast in force now.

    Operations outside `f` run in the grad mode and the autocast of the caller of the result.
    """
    checked = CheckedMap(f, packing)

    def closed(y: Flat) -> Flat:
        state = packing.unpack(y)
        try:
            fy = checked.call(state, *args)
        except FROM_MAP as error:
            explain(error, f, state, args)
            raise
        return packing.pack(packing.accept(state, fy, checked.autocast))

    return closed


def jvp_at(f: FlatMap, y: Flat) -> FlatMap:
    """Return the function v -> J v at `y`, by forward mode: one call of `f` each, no graph."""

    def product(v: Flat) -> Flat:
        try:
            return jvp(f, y, v)
        except NotImplementedError as error:
            error.add_note("Pass `product='vjp'`, which does without forward mode.")
            raise

    return product


def vjp_at(f: FlatMap, y: Flat) -> FlatMap:
    """Return the function v -> J^T v at `y`, by reverse mode: one recorded call of `f` for all."""
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
