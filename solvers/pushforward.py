"""Jacobian-vector products in forward mode."""

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch._functorch import eager_transforms
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
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
        # Fused attention has no forward-mode derivative; the plain formula has.
        with _within_dual_level(), sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(f, (y,), (tangent,))[1]
    except (NotImplementedError, RuntimeError) as error:
        if "forward AD" in str(error):
            raise NotImplementedError(
                "`f` has an operation without a forward-mode derivative, which newton_krylov and "
                f"forward-mode gradients need: {error} Use another solver, or another operation."
            ) from error
        raise


@contextlib.contextmanager
def _within_dual_level() -> Iterator[None]:
    """Let `torch.func.jvp` nest in a plain dual level as it does in itself.

    It opens a dual level unless it knows of one, and there can be only one; its own nesting
    keeps the derivatives apart by wrapping tensors.
    """
    plain = forward_ad._current_level >= 0 and eager_transforms.JVP_NESTING == 0
    eager_transforms.JVP_NESTING += plain
    try:
        yield
    finally:
        eager_transforms.JVP_NESTING -= plain


@functools.cache
def load_forward_mode() -> None:
    """Load torch's formulas now: their first import warns about torch's own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")
