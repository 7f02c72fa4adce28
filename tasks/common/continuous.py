"""Continuous batching: a puzzle joins the running solves when it comes, and leaves when it is done.

Every puzzle is a solve of its own, in a thread of its own, by the code that also evaluates sets.
What the running solves share is the map: once each of them has asked for its next evaluation, one
call of the network answers all. So a solver keeps its memory from its first step to its last,
whoever joins or leaves, and no answer depends on the company but for rounding.

Cost: a solver's own arithmetic is done puzzle by puzzle. On a CPU this costs what it costs in a
batch, as it moves the same memory.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from models import GridModel, GridTransformer
from solvers.types import State
from tasks.common.evaluate import Predictions, rms, solve_batch

Watch = Callable[[float, Tensor], None]
"""Called with the relative residual and the logits, shape (cells, symbols), at each point at which
a solve evaluates its map."""


class Refused(RuntimeError):
    """The engine takes no puzzle now: too many wait, or it is about to end."""


class Engine:
    """Solve puzzles that arrive one by one, as many at a time as there are slots.

    Args:
        model: In evaluation mode. Its map is wrapped: use the model through the engine alone
            until `close` gives it back.
        max_steps: Budget of solver updates for a puzzle.
        max_batch: Slots: puzzles that are solved at a time.
        max_waiting: Puzzles that may wait for a slot.

    Raises:
        ValueError: The model has no solve, or a number is out of its range.
    """

    def __init__(self, model: GridModel, max_steps: int, max_batch: int, max_waiting: int):
        if isinstance(model, GridTransformer):
            raise ValueError(
                "A transformer answers in one pass, so there is no solve to serve. Name the "
                "checkpoint of another model."
            )
        for name, value, least in (
            ("max_steps", max_steps, 1),
            ("max_batch", max_batch, 1),
            ("max_waiting", max_waiting, 0),
        ):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value!r}.")
        self.model, self.max_steps, self.max_batch = model, max_steps, max_batch
        self.capacity = max_batch + max_waiting
        self.meeting = Meeting(model.solving.module)
        model.solving.module = self.meeting
        self._slots = ThreadPoolExecutor(max_batch, "slot")
        self._lock = threading.Lock()
        self._closed = False
        self.pending = 0

    def submit(
        self, x: Tensor, timeout: float, watch: Watch | None = None
    ) -> "Future[Predictions]":
        """Line up a puzzle.

        Args:
            x: Symbols, shape (cells,).
            timeout: Seconds from now after which it is given up, running or waiting.
            watch: See `Watch`; runs in the solve's thread.

        Returns:
            The prediction for a set of one; `TimeoutError` if it took too long.

        Raises:
            Refused: Too many wait already, or the engine is closed.
        """
        with self._lock:
            if self._closed:
                raise Refused("The service is about to end. Ask another one.")
            if self.pending >= self.capacity:
                raise Refused(f"{self.pending} puzzles are in line already. Try again later.")
            self.pending += 1
            future = self._slots.submit(self._solve, x, time.monotonic() + timeout, watch)
        future.add_done_callback(self._forget)
        return future

    @property
    def running(self) -> int:
        """Puzzles that are being solved."""
        return self.meeting.members

    def close(self) -> None:
        """Take no more, finish what was taken, and give the model back."""
        with self._lock:
            self._closed = True
        self._slots.shutdown()
        self.meeting.owner.shutdown()
        self.model.solving.module = self.meeting.module  # type: ignore[union-attr]

    def _solve(self, x: Tensor, deadline: float, watch: Watch | None) -> Predictions:
        def look(y: State, fy: State) -> None:
            if time.monotonic() > deadline:
                raise TimeoutError("The puzzle took too long.")
            if watch is not None:
                residual = rms(pytree.tree_map(torch.sub, fy, y)) / rms(y)
                watch(residual.item(), self.model.read(y)[0])  # type: ignore[union-attr]

        with self.meeting.member(look):
            return solve_batch(self.model, x[None], max_steps=self.max_steps)[0]

    def _forget(self, future: "Future[Predictions]") -> None:
        with self._lock:
            self.pending -= 1


class Round:
    """One call of the network, and the calls of its map that it answers."""

    def __init__(self) -> None:
        self.inputs: list[tuple[Any, ...]] = []
        self.complete = threading.Event()
        self.outputs: Future[list[State]] | None = None


class Meeting(nn.Module):
    """A map whose calls from several threads are evaluated as one, by a thread that owns it.

    A round is complete when as many calls wait as there are members. Calls of threads that are no
    members are answered too, in the next round.

    Args:
        module: The map (y, *args) -> y; all are tensors, or pytrees of them, with a leading
            batch dim.

    Attributes:
        members: Solves that a round waits for.
        rounds: Calls of the module so far.
        rows: Samples in them.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.owner = ThreadPoolExecutor(1, "network")
        self.members = self.rounds = self.rows = 0
        self._lock = threading.Lock()
        self._round = Round()
        self._here = threading.local()

    @contextlib.contextmanager
    def member(self, look: Callable[[State, State], None]) -> Iterator[None]:
        """Take part with this thread, which sees each point and its value in `look`."""
        with self._lock:
            self.members += 1
        self._here.look = look
        try:
            yield
        finally:
            del self._here.look
            with self._lock:
                self.members -= 1
                self._start_if_complete()

    def forward(self, y: State, *args: Any) -> State:
        """One evaluation, as soon as all others want one too."""
        with self._lock:
            current, place = self._round, len(self._round.inputs)
            current.inputs.append((y, *args))
            self._start_if_complete()
        current.complete.wait()
        assert current.outputs is not None
        value = current.outputs.result()[place]
        look = getattr(self._here, "look", None)
        if look is not None:
            look(y, value)
        return value

    def _start_if_complete(self) -> None:
        current = self._round
        if current.inputs and len(current.inputs) >= self.members:
            self._round = Round()
            current.outputs = self.owner.submit(self._evaluate, current.inputs)
            current.complete.set()

    @torch.no_grad()
    def _evaluate(self, inputs: list[tuple[Any, ...]]) -> list[State]:
        sizes = [len(pytree.tree_leaves(each)[0]) for each in inputs]
        self.rounds += 1
        self.rows += sum(sizes)
        if len(inputs) == 1:
            return [self.module(*inputs[0])]
        value = self.module(*pytree.tree_map(lambda *leaves: torch.cat(leaves), *inputs))
        leaves, shape = pytree.tree_flatten(value)
        parts = zip(*(leaf.split(sizes) for leaf in leaves), strict=True)
        return [pytree.tree_unflatten(list(part), shape) for part in parts]
