"""The map of one solve: called under the ambient autocast, checked, and counted."""

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from solvers.checks import check_unchanged
from solvers.packing import StatePacking, check_dense
from solvers.torch_internals import pytree, version_of
from solvers.trees import map_tensors, take_rows, tensors_of
from solvers.types import Flat, Index, Map, State

if TYPE_CHECKING:
    from solvers.derivatives import Affine, Linearisation

# What a map raises that was given something else than it expects.
FROM_MAP = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)


class CheckedMap:
    """`f`, always called under the autocast that was in force at construction, and checked.

    Args:
        f: The map; None if its values are passed in from outside.
        packing: The packing of the state, whose structure, shapes and dtypes `f` must return.
    """

    def __init__(self, f: Map | None, packing: StatePacking):
        self.f, self.packing, self.device = f, packing, packing.device.type
        self.autocast = torch.is_autocast_enabled(self.device)
        self.autocast_dtype = torch.get_autocast_dtype(self.device)

    def __call__(self, state: State, *args: Any) -> State:
        """f(state, *args), in the structure, shapes and dtypes of the state.

        Raises:
            TypeError: `f` returned another structure or dtype.
            ValueError: `f` returned another shape.
        """
        return self.packing.accept(state, self.call(state, *args), self.autocast)

    def call(self, state: State, *args: Any) -> State:
        """f(state, *args) under the autocast that was in force at construction, unchecked."""
        assert self.f is not None
        device = self.device
        if not (self.autocast or torch.is_autocast_enabled(device)):
            return self.f(state, *args)
        # A backward pass may run under another autocast, and solvers switch autocast off.
        with torch.autocast(device, self.autocast_dtype, enabled=self.autocast):
            return self.f(state, *args)

    def full_precision(self) -> contextlib.AbstractContextManager[Any]:
        """Switch autocast off for the solver's own arithmetic."""
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.device, enabled=False)


class CountedMap:
    """The map of one solve, closed over its args.

    Calling it maps a matrix of rows; `evaluate` maps a state.

    Attributes:
        args: The arguments of the rows that are still in the batch.
        num_evals: Calls of `f` so far.
        rows_evaluated: Rows of the batch in these calls.
        rhs: The constant part of an affine map, if one was given.
    """

    def __init__(
        self, f: Map | None, args: tuple[Any, ...], packing: StatePacking, rhs: Flat | None = None
    ):
        tensors = check_args(args, packing)
        self.checked = CheckedMap(f, packing)
        self.packing, self.rhs = packing, rhs
        # Compaction detaches the args. Detach them from the beginning, so that a compiled `f` is
        # not compiled again at that point.
        attached = any(leaf.requires_grad for leaf in tensors)
        if attached and not torch.is_grad_enabled():
            args = map_tensors(Tensor.detach, args)
            tensors = tensors_of(args)
        self.args = args
        # Until the first call. Rows that are taken out of the args later are other tensors.
        self._watched = [(leaf, version_of(leaf)) for leaf in tensors]
        self.num_rows = packing.num_rows
        self.num_evals = self.rows_evaluated = 0

    def __call__(self, y: Flat) -> Flat:
        """f(y) for a matrix of rows, checked and counted."""
        version = version_of(y)
        fy = self.evaluate(self.packing.unpack(y))
        check_unchanged(y, version)
        return self.take(fy)

    def evaluate(self, state: State) -> State:
        """Return f(state) for the rows that are still in the batch, checked but not counted."""
        returned = False
        try:
            fy = self.checked.call(state, *self.args)
            returned = True
            return self.packing.accept(state, fy, self.checked.autocast)
        except FROM_MAP as error:
            if self.num_rows < self.packing.num_rows:
                error.add_note(
                    f"`f` was called on {self.num_rows} of {self.packing.num_rows} rows, because "
                    "the others have stopped and `args` say that samples are independent. Tensors "
                    "that differ per sample must come in `args`, not from the closure. If `f` "
                    "couples the samples, as a graph layer does, pass `independent=False`, or "
                    "`batch_dims=0` for one state; `compact=False` only keeps the batch whole."
                )
            if self.num_evals == 0 and not returned:
                from solvers.call_errors import explain  # most solves never need it

                explain(error, self.checked.f, state, self.args)
            raise

    def take(self, returned: State) -> Flat:
        """Count one call of `f`, and pack what it returned."""
        if not torch.is_grad_enabled():
            # A map that computes gradients inside may return tensors with a graph nevertheless.
            returned = _without_graph(returned)
        if self.num_evals == 0:
            check_dense(returned, self.packing.device)
            check_args_unchanged(self.args, self._watched)
            self._watched = []
        self.num_evals += 1
        self.rows_evaluated += self.num_rows
        return self.packing.pack(returned)

    def linearise(self, y: Flat) -> "Linearisation | Affine":
        """Return df/dy at `y`, for products with it. Calls of `f` that they need are counted."""
        from solvers.derivatives import Affine, Linearisation  # most solves never need it

        def flat(y: Flat) -> Flat:
            self.num_evals += 1
            self.rows_evaluated += self.num_rows
            return self.packing.pack(self.checked(self.packing.unpack(y), *self.args))

        if self.rhs is not None:
            return Affine(flat, self.rhs)
        # Products with J^T would pass information from a token to earlier ones.
        return Linearisation(flat, y, transposable=not self.packing.has_tokens)

    def keep(self, rows: Index) -> None:
        """From now on, call `f` on these rows only."""
        try:
            self.args = take_rows(self.args, rows)
        except RuntimeError as error:
            error.add_note(
                "Some samples have stopped, and their rows of `args` could not be taken out. Where "
                "`f` couples the samples, as a product with a sparse matrix does, pass "
                "`independent=False`, or `batch_dims=0` for one state."
            )
            raise
        if self.rhs is not None:
            self.rhs = self.rhs.index_select(0, self.packing.sample_index(rows))
        self.num_rows = len(rows)

    def of_rows(self, rows: Index) -> "CountedMap":
        """Return the same map for some rows of the batch, with counts that start at 0."""
        part = copy.copy(self)
        part.keep(rows)
        part.num_evals = part.rows_evaluated = 0
        return part


def _without_graph(state: State) -> State:
    if isinstance(state, Tensor):
        return state.detach() if state.requires_grad else state
    return pytree.tree_map(_without_graph, state)


def check_args(args: Any, packing: StatePacking) -> list[Tensor]:
    """Return the tensors in `args`.

    Raises:
        TypeError: An array of NumPy, whose rows cannot be taken out.
        ValueError: A tensor has no row per sample.
    """
    tensors = tensors_of(args)
    for leaf in tensors if packing.batch_dims else ():
        if leaf.shape[:1] != (packing.num_rows,):
            raise ValueError(
                f"`args` are per-sample tensors: got shape {tuple(leaf.shape)} for a batch of "
                f"{packing.num_rows}. Let `f` close over tensors that all samples share."
            )
    for arg in args if isinstance(args, tuple) else ():
        if getattr(arg, "shape", ()) and type(arg).__module__ == "numpy":
            raise TypeError(
                f"`args` must be tensors: got a NumPy array of shape {arg.shape}. Convert it by "
                "`torch.as_tensor`, to the dtype of `y0`."
            )
    return tensors


def check_args_unchanged(args: Any, watched: list[tuple[Tensor, int]]) -> None:
    """Raise a ValueError if `f` wrote into an arg, but for those in an object that is `scratch`.

    Args:
        args: Those of the call, which may have added tensors to a container among them.
        watched: The tensors that were there before, each with its version at that time.
    """
    changed = {id(tensor) for tensor, version in watched if version_of(tensor) != version}
    if changed and any(id(tensor) in changed for tensor in tensors_of(args, but=_is_scratch)):
        raise ValueError(
            "`f` wrote into one of its args, so that each call sees another one. Write into a "
            "copy: drop `inplace=True`, `out=` and methods such as `mul_`. What `f` only keeps "
            "something in, such as a cache, goes into an object whose class says `scratch = True`."
        )


def _is_scratch(node: Any) -> bool:
    return getattr(node, "scratch", False) is True
