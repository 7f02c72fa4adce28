"""One network for several threads: their calls meet, and are evaluated together."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from solvers.torch_internals import pytree
from solvers.types import State

Look = Callable[[State, State], None]
"""Called with a point and the map's value there."""


class Round:
    """One turn of the network, and the calls of its map that it answers."""

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
        calls: Calls of the module so far.
        rows: Samples in them.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.owner = ThreadPoolExecutor(1, "network")
        self.members = self.calls = self.rows = 0
        self._lock = threading.Lock()
        self._round = Round()
        self._here = threading.local()

    @contextlib.contextmanager
    def member(self, look: Look | None) -> Iterator[None]:
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
        sizes = [num_rows(each) for each in inputs]
        self.calls += 1
        self.rows += sum(sizes)
        if len(inputs) == 1:
            return [self.module(*inputs[0])]
        value = self.module(*pytree.tree_map(lambda *leaves: torch.cat(leaves), *inputs))
        leaves, shape = pytree.tree_flatten(value)
        split = zip(*(leaf.split(sizes) for leaf in leaves), strict=True)
        return [pytree.tree_unflatten(list(part), shape) for part in split]


def num_rows(each: tuple[Any, ...]) -> int:
    """Samples in one call's arguments."""
    return len(pytree.tree_leaves(each[0])[0])
