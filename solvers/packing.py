"""Convert between the user's state, a pytree of tensors, and the solvers' matrix of rows.

A state whose leaves have shape `(*batch, ...)` becomes one matrix with a row per sample, in
float32 or wider. A single float32 or float64 tensor is only viewed, never copied. A complex entry
counts as two real ones.
"""

import math
from typing import Any

import torch
from torch import Tensor

from solvers.torch_internals import assert_async, pytree
from solvers.trees import in_words, is_dense
from solvers.types import Flat, Index, State

# `dtype.to_real` is nothing that Dynamo can trace.
_REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32}
_REAL[torch.complex128] = torch.float64


class StatePacking:
    """The packing of one state, built from `y0`. It also checks what `f` returns.

    Args:
        y0: Tensor or pytree of floating-point or complex tensors with equal leading batch dims.
        batch_dims: Number of leading dims that index samples.
        scale: For each leaf of `y0` the unit in which the matrix holds it: a positive number, or
            a tensor of positive numbers that broadcasts to one sample of the leaf.

    Raises:
        TypeError: `y0` has no tensor, or one that is sparse or holds integers; or `scale` is sparse
            or has another structure.
        ValueError: A leaf has fewer than `batch_dims` dims, or the batch shapes differ; or a
            scale is not positive and finite, or does not fit its leaf.
    """

    def __init__(self, y0: State, batch_dims: int, scale: Any = None):
        leaves, self.spec = pytree.tree_flatten(y0)
        _check_leaves(leaves, batch_dims)
        self.batch_dims = batch_dims
        self.batch_shape = leaves[0].shape[:batch_dims]
        # Kept apart, since the first dim may be a symbol while a program is traced.
        self.inner_shape = tuple(self.batch_shape[1:])
        self.shapes = [leaf.shape[batch_dims:] for leaf in leaves]
        self.dtypes = [leaf.dtype for leaf in leaves]
        self.sizes = [
            math.prod(shape) * (2 if dtype.is_complex else 1)
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]
        self.device = leaves[0].device
        self.dtype = torch.float32
        for dtype in self.dtypes:
            self.dtype = torch.promote_types(self.dtype, _real(dtype))
        self.scales = None if scale is None else self._scales(scale)
        real = self.scales is None and not any(dtype.is_complex for dtype in self.dtypes)
        # Whether every matrix can be unpacked without rounding.
        self.exact = self.scales is None and all(
            _real(dtype) == self.dtype for dtype in self.dtypes
        )
        # The common case, one tensor in the solvers' own dtype, is only ever viewed.
        self.plain = self.exact and real and isinstance(y0, Tensor)
        self.is_matrix = self.plain and batch_dims == 1 and leaves[0].ndim == 2
        self.is_view = self.plain and leaves[0].numel() > 0

    @property
    def num_samples(self) -> int:
        """Rows of the packed matrix."""
        return math.prod(self.batch_shape)

    @property
    def num_rows(self) -> int:
        """Length of the first batch dim, whose entries compaction can drop."""
        return self.batch_shape[0] if self.batch_dims else 1

    @property
    def samples_per_row(self) -> int:
        """Number of samples that stay or leave together, such as the tokens of one sequence."""
        return math.prod(self.inner_shape)

    @property
    def has_tokens(self) -> bool:
        """Whether a row may hold several samples, such as tokens, each with its own verdict."""
        return self.batch_dims >= 2

    def pack(self, state: State) -> Flat:
        """Convert a state to a matrix of shape (samples, entries)."""
        if self.is_matrix:
            return state
        if self.is_view:
            return state.reshape(-1, self.sizes[0])
        leaves = pytree.tree_leaves(state)
        rows = math.prod(leaves[0].shape[: self.batch_dims])
        if self.scales is not None:
            leaves = [leaf / scale for leaf, scale in zip(leaves, self.scales, strict=True)]
        leaves = [torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in leaves]
        flat = [
            leaf.reshape(rows, size).to(self.dtype)
            for leaf, size in zip(leaves, self.sizes, strict=True)
        ]
        return flat[0] if len(flat) == 1 else torch.cat(flat, 1)

    def unpack(self, flat: Flat) -> State:
        """Convert a matrix to a state, each leaf in its own dtype."""
        if self.is_matrix:
            return flat
        if self.is_view:
            lead = (-1, *self.inner_shape) if self.batch_dims else ()
            return flat.reshape((*lead, *self.shapes[0]))
        if self.batch_dims and self.samples_per_row:
            batch = (flat.shape[0] // self.samples_per_row, *self.inner_shape)
        else:
            batch = self.batch_shape
        parts = flat.split(self.sizes, 1) if len(self.sizes) > 1 else (flat,)
        leaves = [
            _leaf(part, (*batch, *shape), dtype)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        ]
        if self.scales is not None:
            leaves = [leaf * scale for leaf, scale in zip(leaves, self.scales, strict=True)]
        return pytree.tree_unflatten(leaves, self.spec)

    def round(self, flat: Flat) -> Flat:
        """Round a matrix to values that the state's own dtypes can hold."""
        return flat if self.exact else self.pack(self.unpack(flat))

    def _scales(self, scale: Any) -> list[Tensor]:
        """Check the scale of each leaf and convert it to the leaf's real dtype."""
        given, spec = pytree.tree_flatten(scale)
        if spec != self.spec:
            raise TypeError(
                f"`scale` must have the structure of `y0`: got {in_words(spec)}, expected "
                f"{in_words(self.spec)}."
            )
        found = []
        for value, shape, dtype in zip(given, self.shapes, self.dtypes, strict=True):
            if isinstance(value, Tensor) and not is_dense(value):
                raise TypeError(
                    f"`scale` must be dense: got {value.layout}. Call `.to_dense()` on it."
                )
            usable = isinstance(value, int | float | Tensor) and not torch.is_complex(
                torch.as_tensor(value)
            )
            tensor = torch.as_tensor(value if usable else 0.0, dtype=_real(dtype))
            tensor = tensor.detach().to(self.device)
            fits = tensor.ndim <= len(shape) and all(
                a in (1, b) for a, b in zip(tensor.shape[::-1], shape[::-1], strict=False)
            )
            positive = ((tensor > 0) & tensor.isfinite()).all()
            if fits and torch.compiler.is_compiling():
                assert_async(positive, "`scale` must be positive and finite.")
            elif not fits or not bool(positive):
                raise ValueError(
                    "`scale` holds, for each tensor of `y0`, a positive number or a tensor of them "
                    f"that broadcasts to one sample, of shape {tuple(shape)}: got {value!r}."
                )
            found.append(tensor)
        return found

    def sample_index(self, rows: Index) -> Index:
        """Convert indices of the first batch dim to row indices of the packed matrix."""
        if self.batch_dims < 2:
            return rows
        inner = torch.arange(self.samples_per_row, device=rows.device)
        return (rows[:, None] * self.samples_per_row + inner).flatten()

    def _in_order(self, returned: State, spec: pytree.TreeSpec) -> list[Any]:
        """Return the leaves in the order of `y0`; a dict may list its keys in another order."""
        try:
            leaves = self.spec.flatten_up_to(returned)
        except ValueError:
            leaves = []
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            odd = [leaf for leaf in pytree.tree_leaves(returned) if not isinstance(leaf, Tensor)]
            pair = isinstance(returned, tuple) and len(returned) == 2
            hint = " For a pair (y, aux), pass `has_aux=True`." if pair else ""
            got = _named(odd[0]) if odd else in_words(spec)
            raise TypeError(
                f"`f` must return the structure of its input: got {got}, expected "
                f"{in_words(self.spec)}.{hint}"
            )
        return leaves

    def accept(self, given: State, returned: State, autocast: bool) -> State:
        """Check what `f` returned for `given`; under autocast, restore the state's dtypes.

        Raises:
            TypeError: Another structure or dtype came back.
            ValueError: Another shape came back.
        """
        if (
            self.plain
            and isinstance(returned, Tensor)
            and returned.shape == given.shape
            and returned.dtype == given.dtype
        ):
            return returned
        leaves, spec = pytree.tree_flatten(returned)
        if spec != self.spec:
            leaves = self._in_order(returned, spec)
            returned = pytree.tree_unflatten(leaves, self.spec)
        for old, new in zip(pytree.tree_leaves(given), leaves, strict=True):
            if not isinstance(new, Tensor):
                raise TypeError(
                    f"`f` must return tensors: got {_named(new)}. Is a `return` missing, or does "
                    "it leave torch?"
                )
            if new.shape != old.shape:
                raise ValueError(
                    f"`f` must return its input's shape: got {tuple(new.shape)} from y of shape "
                    f"{tuple(old.shape)}."
                )
            if new.dtype != old.dtype and not autocast:
                usable = new.is_floating_point() or new.is_complex()
                other = f", or start from a `y0` of dtype {new.dtype}" if usable else ""
                raise TypeError(
                    f"`f` must return its input's dtype: got {new.dtype} from y of dtype "
                    f"{old.dtype}. Cast inside `f`{other}."
                )
        if not autocast:
            return returned
        cast = [leaf.to(dtype) for leaf, dtype in zip(leaves, self.dtypes, strict=True)]
        return pytree.tree_unflatten(cast, self.spec)


def check_dense(returned: State, device: torch.device) -> None:
    """Check that what `f` returned is dense and on the device of the state, as the state is.

    Raises:
        TypeError: It is sparse.
        ValueError: It is on another device.
    """
    for leaf in pytree.tree_leaves(returned):
        if not is_dense(leaf):
            raise TypeError(
                f"`f` must return dense tensors: got {leaf.layout}. Call `.to_dense()` on it."
            )
        if leaf.device != device:
            raise ValueError(
                f"`f` must return tensors on the device of `y0`, {device}: got one on "
                f"{leaf.device}. Move the weights of `f` and what it closes over to `y0.device`."
            )


def _named(value: Any) -> str:
    """What came in place of a tensor, in words."""
    return "None" if value is None else f"a {type(value).__name__}"


def _real(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the real part."""
    return _REAL.get(dtype, dtype)


def _leaf(part: Flat, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Convert columns of the matrix to one leaf of the state."""
    if not dtype.is_complex:
        return part.reshape(shape).to(dtype)
    return torch.view_as_complex(part.reshape(*shape, 2).to(_real(dtype)).contiguous())


def _check_leaves(leaves: list[Any], batch_dims: int) -> None:
    if not leaves:
        raise TypeError("`y0` holds no tensor. Pass a tensor or a pytree of tensors.")
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"`y0` must hold tensors only: got {_named(leaf)}. "
                "Convert numbers by `torch.as_tensor`, and let `f` close over what is no state."
            )
        if not (leaf.is_floating_point() or leaf.is_complex()):
            raise TypeError(
                f"`y0` must be floating point or complex: got {leaf.dtype}. Call `.float()` on it."
            )
        if leaf.dtype.itemsize == 1 or not is_dense(leaf) or leaf.is_meta:
            convert = "Call `.to_dense()` or `.float()` on it."
            remedy = "Create it on a device that holds values." if leaf.is_meta else convert
            raise TypeError(
                "`y0` must be dense, of 16 bits or more per number, and hold values: got "
                f"{leaf.dtype}, {leaf.layout}, on {leaf.device}. {remedy}"
            )
        if leaf.device != leaves[0].device:
            raise ValueError(
                "All tensors of `y0` must be on one device: got "
                f"{leaf.device} and {leaves[0].device}."
            )
        if leaf.ndim < batch_dims:
            raise ValueError(
                f"`y0` has a tensor of shape {tuple(leaf.shape)}, but `batch_dims={batch_dims}` "
                "needs as many leading batch dims. Pass `batch_dims=0` for one unbatched state."
            )
        if leaf.shape[:batch_dims] != leaves[0].shape[:batch_dims]:
            raise ValueError(
                "All tensors of `y0` must share their batch dims: got "
                f"{tuple(leaf.shape[:batch_dims])} and {tuple(leaves[0].shape[:batch_dims])}."
            )
