"""Jacobian-vector products in forward mode."""

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from solvers.torch_internals import load_forward_mode, nested_dual_level, pytree
from solvers.types import State


def pushforward(f: Callable[[State], State], y: State, tangent: State) -> State:
    """The derivative of f at y along the tangent; all three have one structure.

    Raises:
        NotImplementedError: `f` has an operation without a forward-mode derivative.
    """
    load_forward_mode()
    # Dual numbers need memory of their own for every entry: no expanded tensors.
    y, tangent = pytree.tree_map(torch.Tensor.contiguous, (y, tangent))
    try:
        # Fused attention has no forward-mode derivative; the plain formula has.
        with nested_dual_level(), sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(f, (y,), (tangent,))[1]
    except (NotImplementedError, RuntimeError) as error:
        if "forward AD" in str(error):
            raise NotImplementedError(
                "`f` has an operation without a forward-mode derivative, which newton_krylov and "
                f"forward-mode gradients need: {error} Use another solver, or another operation."
            ) from error
        raise
