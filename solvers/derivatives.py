"""Products with the Jacobian of a map, J v and J^T v.

Reverse mode applied twice gives both from one recorded call of the map: g(w) = J^T w is linear
in w, and the transpose of its derivative is J. This is thread-safe. Forward mode calls the map
once per product, under a lock, since its level is global to the process. It is used where an
operation has no second derivative, and where the caller asks for it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from solvers.torch_internals import load_forward_mode, nested_dual_level, plain_attention, pytree
from solvers.types import Flat, State

# Parts of torch's errors for an operation without a second derivative, such as a fused kernel or
# a compiled map.
NO_SECOND = ("is not implemented", "double backward")
# And of one without forward mode: its own, and functions of the caller.
NO_FORWARD = ("forward AD", "forward mode AD")
_FORWARD_LEVEL = threading.RLock()
_SWITCH, _SWITCH_USERS, _SWITCH_STACK = threading.Lock(), [], ExitStack()


class Linearisation:
    """The Jacobian J of a map of matrices at one point, for the products J v and J^T u.

    Args:
        f: The map.
        y: The point.
        transposable: Whether products with J^T are allowed.
    """

    def __init__(self, f: Callable[[Flat], Flat], y: Flat, transposable: bool = True):
        self.f, self.y, self.transposable = f, y, transposable
        # f(y) with its graph; None where products need forward mode.
        self.fy: Flat | None = None
        if torch.is_inference_mode_enabled():  # where nothing can be recorded
            return
        with torch.enable_grad(), _PlainAttention():
            self.point = y.detach().requires_grad_()
            try:
                fy = f(self.point)
            except RuntimeError as error:
                if "requires grad" in str(error):
                    error.add_note(
                        "`f` was called to be differentiated, as newton_krylov has to. Use a "
                        "solver that does without, such as 'anderson' or 'scipy.krylov'."
                    )
                raise
            # Without a graph `f` is constant, or hides its operations from autograd.
            if not fy.requires_grad:
                return
            self.fy = fy
            self.w = torch.zeros_like(fy, requires_grad=True)
            self.vjp_of_w = _gradient(fy, self.point, self.w, create_graph=True)
        if _graph_is_cut(self.vjp_of_w):
            self.fy = None

    def jvp(self, v: Flat) -> Flat:
        """Return J v."""
        if self.fy is not None:
            if not self.vjp_of_w.requires_grad:  # autograd has found that J is zero
                return torch.zeros_like(v)
            try:
                return _gradient(self.vjp_of_w, self.w, v, retain_graph=True)
            except RuntimeError as error:
                if not any(words in str(error) for words in NO_SECOND):
                    raise
                self.fy = None
        return jvp(self.f, self.y, v)

    def vjp(self, u: Flat) -> Flat | None:
        """Return J^T u, or None if it is not allowed or only forward mode works."""
        if self.fy is None or not self.transposable:
            return None
        return _gradient(self.fy, self.point, u, retain_graph=True)


def _graph_is_cut(tensor: Tensor) -> bool:
    """Whether part of a tensor's graph is cut off, as by `once_differentiable`.

    Torch raises an error only where a gradient reaches the cut. Here none does, and the missing
    part of the derivative would silently count as zero.
    """
    waiting, seen = [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name().endswith("Error"):
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False


class Affine:
    """The matrix K of an affine map y -> b + K y; its products are differences of the map.

    Args:
        f: The map.
        b: Its constant part.
    """

    def __init__(self, f: Callable[[Flat], Flat], b: Flat):
        self.f, self.b = f, b

    def jvp(self, v: Flat) -> Flat:
        """Return K v, from f at a multiple of v of the size of b, which keeps rounding small."""
        size = _size(self.b)
        size = torch.where(size > 0, size, 1.0) / torch.where(_size(v) > 0, _size(v), 1.0)
        return (self.f(size * v) - self.b) / size

    def vjp(self, u: Flat) -> None:
        """Return None, since products with K^T are not available."""


def _size(rows: Flat) -> Tensor:
    return torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)


def _gradient(of: Tensor, to: Tensor, v: Tensor, **graph: bool) -> Tensor:
    (found,) = torch.autograd.grad(of, to, v, allow_unused=True, materialize_grads=True, **graph)
    return found


def jvp(f: Callable[[State], State], y: State, tangent: State) -> State:
    """Return the derivative of f at y along a tangent, by forward mode.

    The state, its tangent and the derivative have the same structure.

    Raises:
        NotImplementedError: `f` has an operation without a forward-mode derivative.
    """
    load_forward_mode()
    # Dual tensors need separate memory for every entry, which expanded tensors do not have.
    y, tangent = pytree.tree_map(torch.Tensor.contiguous, (y, tangent))
    try:
        with _FORWARD_LEVEL, nested_dual_level(), _PlainAttention():
            return torch.func.jvp(f, (y,), (tangent,))[1]
    except (NotImplementedError, RuntimeError) as error:
        if any(words in str(error) for words in NO_FORWARD):
            raise NotImplementedError(
                "`f` has an operation without a forward-mode derivative, which forward-mode "
                "gradients need, and newton_krylov where a second derivative is missing: "
                f"{error} Use another solver, or another operation."
            ) from error
        raise


class _PlainAttention(TorchFunctionMode):
    """Attention by the plain formula: the fused kernels have first derivatives only."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        # Inside this function, torch hides the call of attention from all modes.
        with _math_kernel_everywhere() if func is multi_head_attention_forward else nullcontext():
            return func(*args, **kwargs)


@contextmanager
def _math_kernel_everywhere() -> Iterator[None]:
    """Select torch's unfused attention, a global setting, as long as any thread needs it."""
    with _SWITCH:
        if not _SWITCH_USERS:
            _SWITCH_STACK.enter_context(sdpa_kernel(SDPBackend.MATH))
        _SWITCH_USERS.append(None)
    try:
        yield
    finally:
        with _SWITCH:
            _SWITCH_USERS.pop()
            if not _SWITCH_USERS:
                _SWITCH_STACK.close()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        kept = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = kept.masked_fill(~attn_mask, -torch.inf)
    return plain_attention()(query, key, value, attn_mask, dropout_p, is_causal, **options)[0]
