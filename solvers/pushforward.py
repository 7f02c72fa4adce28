"""Jacobian-vector products in forward mode."""

import functools
import warnings
from collections.abc import Callable

import torch
from torch.utils import _pytree as pytree

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
        return torch.func.jvp(f, (y,), (tangent,))[1]
    except (NotImplementedError, RuntimeError) as error:
        if "forward AD" in str(error):
            raise NotImplementedError(
                "`f` has an operation without a forward-mode derivative, which newton_krylov and "
                f"forward-mode gradients need: {error} Use another solver, or another operation."
            ) from error
        raise


@functools.cache
def load_forward_mode() -> None:
    """Load torch's formulas now: their first import warns about torch's own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch._decomp.decompositions_for_jvp  # noqa: F401
