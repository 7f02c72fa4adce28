"""Products with the Jacobian of a map, J v and J^T v.

Reverse mode applied twice gives both from one recorded call of the map: g(w) = J^T w is linear
in w, and its own derivative, transposed, is J. All of its state belongs to the thread. Forward
mode calls the map once per product, and its level is global to the process, hence the lock; it
serves where an operation has no second derivative, and where the caller asks for it.
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

# What torch says of an operation without a derivative of its derivative: its own fused kernels,
# and maps that were compiled.
NO_SECOND = ("is not implemented", "double backward")
# And of one without forward mode: its own, and functions of the caller.
NO_FORWARD = ("forward AD", "forward mode AD")
_FORWARD_LEVEL = threading.RLock()
_SWITCH, _SWITCH_USERS, _SWITCH_STACK = threading.Lock(), [], ExitStack()


class Linearisation:
    """The Jacobian J of a map of matrices at one point, for products from either side.

    Args:
        f: The map.
        y: The point.
        transposable: Whether J^T may be used.
    """

    def __init__(self, f: Callable[[Flat], Flat], y: Flat, transposable: bool = True):
        self.f, self.y, self.transposable = f, y, transposable
        self.end: Flat | None = None
        if torch.is_inference_mode_enabled():  # where nothing can be recorded
            return
        with torch.enable_grad(), _PlainAttention():
            self.start = y.detach().requires_grad_()
            try:
                end = f(self.start)
            except RuntimeError as error:
                if "requires grad" in str(error):
                    error.add_note(
                        "`f` was called to be differentiated, as newton_krylov has to. Use a "
                        "solver that does without, such as 'anderson' or 'scipy.krylov'."
                    )
                raise
            # Without a graph `f` is constant, or hides its operations from autograd.
            if not end.requires_grad:
                return
            self.end = end
            self.w = torch.zeros_like(end, requires_grad=True)
            self.pulled = _gradient(end, self.start, self.w, create_graph=True)
        if _ends_in_an_error(self.pulled):
            self.end = None

    def push(self, v: Flat) -> Flat:
        """J v."""
        if self.end is not None:
            if not self.pulled.requires_grad:  # autograd has found that J is zero
                return torch.zeros_like(v)
            try:
                return _gradient(self.pulled, self.w, v, retain_graph=True)
            except RuntimeError as error:
                if not any(words in str(error) for words in NO_SECOND):
                    raise
                self.end = None
        return jvp(self.f, self.y, v)

    def pull(self, u: Flat) -> Flat | None:
        """J^T u, or None where it may not be used, or only forward mode works."""
        if self.end is None or not self.transposable:
            return None
        return _gradient(self.end, self.start, u, retain_graph=True)


def _ends_in_an_error(pulled: Tensor) -> bool:
    """Whether part of its graph is cut off, as functions marked `once_differentiable` do.

    Torch raises only where a gradient has to pass there, and none does: it would be zero.
    """
    waiting, seen = [pulled.grad_fn], set()
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
    """K of the map y -> b + K y, whose differences are its products: no derivative is needed.

    Args:
        f: The map.
        b: Its constant part.
    """

    def __init__(self, f: Callable[[Flat], Flat], b: Flat):
        self.f, self.b = f, b

    def push(self, v: Flat) -> Flat:
        """K v, by a difference of the size of b, so that rounding is the least."""
        size = _size(self.b)
        size = torch.where(size > 0, size, 1.0) / torch.where(_size(v) > 0, _size(v), 1.0)
        return (self.f(size * v) - self.b) / size

    def pull(self, u: Flat) -> None:
        """Nothing: see `Linearisation`."""


def _size(rows: Flat) -> Tensor:
    return torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)


def _gradient(of: Tensor, to: Tensor, v: Tensor, **graph: bool) -> Tensor:
    (found,) = torch.autograd.grad(of, to, v, allow_unused=True, materialize_grads=True, **graph)
    return found


def jvp(f: Callable[[State], State], y: State, tangent: State) -> State:
    """The derivative of f at y along the tangent in forward mode; all three have one structure.

    Raises:
        NotImplementedError: `f` has an operation without a forward-mode derivative.
    """
    load_forward_mode()
    # Dual numbers need memory of their own for every entry: no expanded tensors.
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
        # Within it, torch shows no mode the call above.
        with _all_threads_plain() if func is multi_head_attention_forward else nullcontext():
            return func(*args, **kwargs)


@contextmanager
def _all_threads_plain() -> Iterator[None]:
    """Set torch's own switch, which is global, as long as any thread needs it."""
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
