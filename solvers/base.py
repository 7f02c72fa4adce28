"""The solver contract, and the one loop that every solver runs in.

A solver says how to `init` its memory and how to make one `step`; evaluating `f`, judging
each sample, freezing the finished ones and dropping them from the batch happen here.
"""

import contextlib
import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.derivatives import Affine, Linearisation
from solvers.packing import StatePacking, map_tensors, take_rows, tensors_of
from solvers.promises import Promises
from solvers.solution import Solution
from solvers.status import SampleStatus, check_unchanged
from solvers.torch_internals import (
    is_legacy_batchedtensor,
    pytree,
    records_without_values,
    version_of,
)
from solvers.types import Flat, Index, Map, Mask, State

# Samples are dropped from the batch once this share of it has stopped: copying what is left
# costs about as much as one update, so small gains are not worth it.
COMPACT_SHARE = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedPointSolver(ABC):
    """Base of all solvers: frozen options, and pure `init` and `step` on a matrix of rows.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.

    Attributes:
        estimates_inverse: The memory can apply `transposed_inverse`, an estimate of
            (I - J^T)^-1.
        recordable: The steps can be differentiated through.
        linear: For affine maps only, whose iterates may grow in between: growth ends no sample.
        promises: On which maps it converges, and at what cost, for `solvers.testing.check`. By
            default: on contractions, as fast as Picard. A property where options decide.

    Raises:
        ValueError: A tolerance is negative or not finite.
    """

    estimates_inverse: ClassVar[bool] = False
    recordable: ClassVar[bool] = True
    linear: ClassVar[bool] = False
    promises: ClassVar[Promises] = Promises()

    rtol: float = 1e-5
    atol: float = 1e-8

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            check_at_least_0(name, getattr(self, name))

    @abstractmethod
    def init(self, y: Flat) -> Any:
        """Memory before the first step: a pytree whose tensors have a row per sample."""

    @abstractmethod
    def step(self, y: Flat, fy: Flat, carry: Any) -> tuple[Flat, Any]:
        """Next iterate and memory, from `y`, `fy` = f(y) and the memory."""

    def move(self, y: Flat, fy: Flat, carry: Any, f: "CountedMap") -> tuple[Flat, Any]:
        """As `step`, for solvers that call `f` or its derivative once more within a step."""
        return self.step(y, fy, carry)

    def on_trial(self, carry: Any) -> Mask | None:
        """Samples whose newest point is only tried, as by a line search; None: nobody's.

        Such a point may be anything, NaN included, without ending its sample; within tolerance,
        it converges.
        """
        return None

    def given_up(self, carry: Any) -> Mask | None:
        """Samples that the last step left where they were for good: they are `stalled`.

        Where samples may move each other, not before all that may move them are at rest.
        """
        return None

    def begin(
        self, y: Flat, f: "CountedMap", status: SampleStatus
    ) -> contextlib.AbstractContextManager[Any]:
        """As `init`, for solvers that must see more than the first point, or tidy up."""
        return contextlib.nullcontext(self.init(y))

    def advance(self, y: Flat, y_next: Flat, carry: Any, status: SampleStatus) -> Flat:
        """The points to evaluate next: those of a step, but stopped samples stay."""
        return status.advance(y, y_next)

    def keep(self, carry: Any, samples: Index) -> Any:
        """Drop all but these samples, in ascending order, from the memory."""
        return take_rows(carry, samples)

    def check_tokens(self, packing: StatePacking) -> None:
        """Raise a ValueError where tokens are to have verdicts and the solver mixes them."""
        if packing.has_tokens and not self.promises.tokens:
            raise ValueError(
                f"{type(self).__name__} solves all tokens of a row together, so that a token would "
                "see those behind it: it refuses `batch_dims=2`. Use another solver, or "
                "`batch_dims=1` for one verdict per row."
            )

    def iterate(
        self,
        f: Map,
        y0: State,
        args: tuple[Any, ...] = (),
        *,
        max_steps: int,
        batch_dims: int = 1,
        compact: bool = True,
        independent: bool | None = None,
        scale: Any = None,
        rhs: State | None = None,
        memory: list[tuple[Index, Any]] | None = None,
    ) -> Solution:
        """Run the loop in the caller's grad mode; `solvers.solve` is the public entry.

        Under grad mode every update is recorded, so the result can be differentiated
        through the solver.

        Args:
            f: See `solve`, as for the other arguments.
            y0: First guess.
            args: Per-sample arguments of `f`.
            max_steps: Budget of updates.
            batch_dims: Leading dims that index samples.
            compact: Let stopped samples leave the batch, where they are independent.
            independent: Whether samples cannot influence each other; by default, whether
                there are `args`.
            scale: See `solve`.
            rhs: The constant part b of an affine map b + K y. Given it, tolerances are relative
                to rms(b) instead of rms(f(y)), since the solution of a nearly singular equation
                is as large as one likes; and growth ends no sample.
            memory: Where to keep the solver's memory of the samples that stop, as pairs of
                sample index and memory; then no sample leaves the batch.
        """
        check_counts(max_steps, batch_dims)
        packing = StatePacking(y0, batch_dims, scale)
        self.check_tokens(packing)
        constant = None if rhs is None else packing.pack(rhs)
        evaluate = CountedMap(f, args, packing, constant)
        y = packing.pack(y0)
        check_readable(y)
        independent = bool(args) if independent is None else independent
        status = SampleStatus(
            y,
            packing,
            rtol=self.rtol,
            atol=self.atol,
            independent=independent,
            linear=self.linear,
            rhs=constant,
        )
        with self.begin(y, evaluate, status) as carry:
            for step in range(max_steps + 1 if packing.num_samples else 0):
                fy = evaluate(y)
                trial = self.on_trial(carry)
                if status.observe(y, fy, step, trial) == 0 or step == max_steps:
                    break
                if memory is not None:
                    _remember(memory, status, carry)
                elif compact and args and independent:
                    kept = status.compact(COMPACT_SHARE, evaluate)
                    if kept is not None:
                        # One by one, and the arguments last, so that memory does not peak here.
                        rows, samples = kept
                        y = y.index_select(0, samples)
                        fy = fy.index_select(0, samples)
                        carry = self.keep(carry, samples)
                        evaluate.keep(rows)
                with evaluate.full_precision():
                    y_next, carry = self.move(y, fy, carry, evaluate)
                status.may_stand = carry is None and y_next is not fy
                del fy  # where it is not the next iterate, `f` may need its memory
                stuck = self.given_up(carry)
                if stuck is not None:
                    status.give_up(stuck)
                y = self.advance(y, packing.round(y_next), carry, status)
                del y_next
                if status.num_running == 0:
                    break
        if memory is not None:
            _remember(memory, status, carry, at_end=True)
        fy = None
        del y, fy  # so that memory does not peak at the last call
        if status.mixes_steps:
            status.measure(evaluate(status.value))
        return status.solution(evaluate.num_evals, evaluate.rows_evaluated)


def check_at_least_0(name: str, value: Any) -> None:
    """Raise a ValueError unless an option is a finite number of at least 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}` must be finite and at least 0, got {value!r}.")


def _remember(
    memory: list[tuple[Index, Any]], status: SampleStatus, carry: Any, at_end: bool = False
) -> None:
    """Keep the solver's memory of those who have stopped since the last call."""
    stopped = torch.ones_like(status.result, dtype=torch.bool) if at_end else status.result >= 0
    for samples, _ in memory:
        stopped[samples] = False
    samples = stopped.nonzero().flatten()
    if len(samples):
        memory.append((samples, take_rows(carry, samples)))


class CountedMap:
    """`f` as a map of matrices: closed over its args, counted, and checked at each call."""

    def __init__(
        self, f: Map, args: tuple[Any, ...], packing: StatePacking, rhs: Flat | None = None
    ):
        tensors = tensors_of(args)
        _check_args(tensors, packing)
        self.f, self.packing, self.rhs = f, packing, rhs
        # As after compaction: a compiled `f` would otherwise be compiled once more then.
        attached = any(leaf.requires_grad for leaf in tensors)
        if attached and not torch.is_grad_enabled():
            args = map_tensors(Tensor.detach, args)
        self.args = args
        self.num_rows = packing.num_rows
        self.num_evals = 0
        self.rows_evaluated = 0
        self.autocast = torch.is_autocast_enabled(packing.device.type)
        self.autocast_dtype = torch.get_autocast_dtype(packing.device.type)

    def __call__(self, y: Flat) -> Flat:
        """f(y), checked and counted."""
        state = self.packing.unpack(y)
        version = version_of(y)
        try:
            returned = self._closed(state)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if self.num_rows < self.packing.num_rows:
                error.add_note(
                    f"`f` was called on {self.num_rows} of {self.packing.num_rows} rows, because "
                    "the others have stopped and `args` say that samples are independent. Tensors "
                    "that differ per sample must come in `args`, not from the closure. If `f` "
                    "couples the samples, as a graph layer does, pass `independent=False`, or "
                    "`batch_dims=0` for one state; `compact=False` only keeps the batch whole."
                )
            raise
        check_unchanged(y, version)
        if not torch.is_grad_enabled():
            # A map that takes gradients inside may return a graph all the same.
            returned = _without_graph(returned)
        self.num_evals += 1
        self.rows_evaluated += self.num_rows
        return self.packing.pack(returned)

    def linearise(self, y: Flat) -> Linearisation | Affine:
        """df/dy at `y`, for products; `f` is counted as often as it is called for them."""

        def flat(y: Flat) -> Flat:
            self.num_evals += 1
            self.rows_evaluated += self.num_rows
            return self.packing.pack(self._closed(self.packing.unpack(y)))

        if self.rhs is not None:
            return Affine(flat, self.rhs)
        # J^T would tell a token of those behind it.
        return Linearisation(flat, y, transposable=not self.packing.has_tokens)

    def _closed(self, state: State) -> State:
        if not self.autocast:
            return self.packing.accept(state, self.f(state, *self.args), False)
        # A solver that calls `f` within a step does so amid arithmetic in full precision.
        with torch.autocast(self.packing.device.type, self.autocast_dtype):
            return self.packing.accept(state, self.f(state, *self.args), True)

    def keep(self, rows: Tensor) -> None:
        """From now on, call `f` on these rows only."""
        self.args = take_rows(self.args, rows)
        if self.rhs is not None:
            self.rhs = self.rhs.index_select(0, self.packing.sample_index(rows))
        self.num_rows = len(rows)

    def full_precision(self) -> contextlib.AbstractContextManager[Any]:
        """Keep autocast away from the solver's own arithmetic."""
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.packing.device.type, enabled=False)


def _without_graph(state: State) -> State:
    if isinstance(state, Tensor):
        return state.detach() if state.requires_grad else state
    return pytree.tree_map(_without_graph, state)


def check_readable(y: Flat) -> None:
    """Refuse tensors whose values no loop can read, where torch would fail inside."""
    if is_legacy_batchedtensor(y):
        raise NotImplementedError(
            "`vectorize=True` and `is_grads_batched=True` of torch.autograd hide the residuals, "
            "which the solver must read. Leave them off, or use torch.func.jacrev, jacfwd, hessian."
        )
    if records_without_values():
        raise NotImplementedError(
            "torch.func.linearize and make_fx record operations without values, but the solver "
            "must read its residuals. Use torch.func.jvp, and vmap over it for several tangents."
        )


def check_counts(max_steps: int, batch_dims: int) -> None:
    """Raise a ValueError unless both are integers of at least 0."""
    for name, value in (("max_steps", max_steps), ("batch_dims", batch_dims)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"`{name}` must be an integer of at least 0, got {value!r}.")


def _check_args(tensors: list[Tensor], packing: StatePacking) -> None:
    if packing.batch_dims == 0:
        return
    for leaf in tensors:
        if leaf.shape[:1] != (packing.num_rows,):
            raise ValueError(
                f"`args` are per-sample tensors: got shape {tuple(leaf.shape)} for a batch of "
                f"{packing.num_rows}. Let `f` close over tensors that all samples share."
            )
