"""Continuous batching: a puzzle joins the running solves when it comes, and leaves when it is done.

One thread steps all solves. Puzzles that start together share a solve; each is answered as soon as
it has stopped, while the others go on. In every round each solve asks for a point, and one call of
the network answers all. So a solver keeps its memory from its first step to its last, whoever joins
or leaves, and no answer depends on the company but for rounding.

Cost: a step's own cost in Python is paid once for the puzzles that started together. So one solve
starts in a round at most, and under load `together` of those that wait start when as many slots are
free.
"""

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from models import GridModel
from solvers import Result, Run
from solvers.checks import check_integer
from solvers.norms import rms
from solvers.torch_internals import pytree
from solvers.types import State
from tasks.puzzles.evaluate import Predictions

Watch = Callable[[float, Tensor], None]
"""Called with the relative residual and the logits, shape (cells, symbols), at each point at which
a solve evaluates its map."""
Start = Callable[[State], State]
"""Makes the state in which a solve starts from the model's own start, both for one puzzle."""
Ended = Callable[[Tensor, State], None]
"""Called with the logits, on the CPU, and the state in which a puzzle's solve has ended; both lead
with one puzzle."""

# Puzzles that a solve starts with, at most: more save little in Python and cost cache.
MOST_TOGETHER = 8


class Refused(RuntimeError):
    """The engine takes no puzzle now: too many wait, or it is about to end."""


@dataclasses.dataclass(eq=False)
class Request:
    """A puzzle in line, or being solved.

    Attributes:
        x: Symbols, shape (cells,).
        deadline: When it is given up, in the time of `time.monotonic`.
        watch: See `Watch`.
        start: See `Start`; by default the model's own start.
        ended: See `Ended`.
        future: The answer to come. Cancel it to give the puzzle up, waiting or running.
        left: Whether it has left the engine, with an answer or without.
    """

    x: Tensor
    deadline: float
    watch: Watch | None = None
    start: Start | None = None
    ended: Ended | None = None
    future: Future[Predictions] = dataclasses.field(default_factory=Future)
    left: bool = False


class Engine:
    """Solve puzzles that arrive one by one, as many at a time as there are slots.

    Args:
        model: In evaluation mode. Until `close`, use it through the engine alone.
        max_steps: Budget of solver updates for a puzzle.
        max_batch: Slots: puzzles that are solved at a time.
        max_waiting: Puzzles that may wait for a slot.

    Attributes:
        module: The map that the solves share.
        together: Slots that must be free before some of those that wait may start, if not all can.
        pending: Puzzles that run or wait.
        running: Puzzles that are being solved.
        calls: Calls of the map so far.
        rows: Puzzles in them.

    Raises:
        ValueError: The model has no solve, or one that cannot be stepped, or a number is out of
            its range.
    """

    def __init__(self, model: GridModel, max_steps: int, max_batch: int, max_waiting: int):
        if model.solving is None:
            raise ValueError(
                "A transformer answers in one pass, so there is no solve to serve. Name the "
                "checkpoint of another model."
            )
        if model.solving.solver.whole:
            raise ValueError(
                f"{type(model.solving.solver).__name__} cannot be stepped, so that puzzles cannot "
                "join and leave its solve. Name another `--solver`."
            )
        for name, value, least in (
            ("max_steps", max_steps, 1),
            ("max_batch", max_batch, 1),
            ("max_waiting", max_waiting, 0),
        ):
            check_integer(name, value, least)
        self.model, self.layer, self.max_steps = model, model.solving, max_steps
        self.module, self.max_batch = self.layer.module, max_batch
        self.capacity = max_batch + max_waiting
        # A quarter at most: free slots that wait for more to become free are not used.
        self.together = min(MOST_TOGETHER, max(max_batch // 4, 1))
        self.pending = self.running = self.calls = self.rows = 0
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._solves: list[tuple[list[Request], Run]] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        x: Tensor,
        timeout: float,
        watch: Watch | None = None,
        start: Start | None = None,
        ended: Ended | None = None,
    ) -> "Future[Predictions]":
        """Line up a puzzle.

        Args:
            x: Symbols, shape (cells,).
            timeout: Seconds from now after which it is given up, running or waiting.
            watch: See `Watch`; runs in the engine's thread, as the next two do.
            start: See `Start`; by default the solve starts where the model's own does.
            ended: See `Ended`; runs before the prediction is there.

        Returns:
            The prediction for a set of one; `TimeoutError` if it took too long. Whoever cancels it
            frees the puzzle's place in line at once, or its slot before the next step.

        Raises:
            Refused: Too many wait already, or the engine is closed.
        """
        with self._changed:
            if self._closed:
                raise Refused("The service is about to end. Ask another one.")
            if self.pending >= self.capacity:
                raise Refused(f"{self.pending} puzzles are in line already. Try again later.")
            self.pending += 1
            request = Request(x, time.monotonic() + timeout, watch, start, ended)
            self._waiting.append(request)
            self._changed.notify_all()
        request.future.add_done_callback(self._withdraw)
        return request.future

    def close(self) -> None:
        """Take no more, and finish what was taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _withdraw(self, future: "Future[Predictions]") -> None:
        """Free the place of a puzzle in line that nobody waits for any more."""
        if future.cancelled():
            with self._changed:
                kept = [request for request in self._waiting if request.future is not future]
                self.pending -= len(self._waiting) - len(kept)
                self._waiting = deque(kept)

    @torch.no_grad()
    def _work(self) -> None:
        """Round after round, until the engine is closed and all are answered."""
        while (requests := self._next()) is not None:
            if requests:
                self._guarded(requests, self._begin, requests)
            if self._solves:
                everyone = [request for others, _ in self._solves for request in others]
                self._guarded(everyone, self._round)

    def _guarded(
        self, requests: list[Request], work: Callable[..., None], *given: list[Request]
    ) -> None:
        """Do some work; if it fails, so have the puzzles that it was for, and nobody else."""
        try:
            work(*given)
        except Exception as error:  # whatever the network raises: the service outlives it
            self._solves = [solve for solve in self._solves if solve[0][0] not in requests]
            for request in requests:
                self._answer(request, error)

    def _next(self) -> list[Request] | None:
        """Wait for work; the puzzles that start now, or None where no work will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._solves or self._closed)
            if not self._waiting and not self._solves:
                return None
            free, requests = self.max_batch - self.running, []
            if free >= min(len(self._waiting), self.together):
                requests = self._take(min(free, self.together))
            self.running += len(requests)
            return requests

    def _take(self, most: int) -> list[Request]:
        """Take puzzles that start together."""
        requests: list[Request] = []
        while self._waiting and len(requests) < most:
            # Whoever watches sees each point, so has a solve of its own.
            if requests and not (requests[-1].watch is self._waiting[0].watch is None):
                break
            requests.append(self._waiting.popleft())
        return requests

    def _begin(self, requests: list[Request]) -> None:
        """Start a solve."""
        device = next(self.model.parameters()).device
        x = torch.stack([request.x for request in requests]).to(device)
        y0, args = self.model.problem(x)  # type: ignore[union-attr]
        y0 = _started(requests, y0)
        layer = self.layer
        run = Run(
            self._call, y0, *args, solver=layer.solver, max_steps=self.max_steps,
            batch_dims=layer.batch_dims, compact=layer.compact, independent=layer.independent,
            scale=layer.scale,
        )  # fmt: skip
        self._solves.append((requests, run))

    def _round(self) -> None:
        """One call of the map, and one step of every solve."""
        asked = [(run.point, *run.args) for _, run in self._solves]
        for (requests, run), value in zip(self._solves, self._evaluate(asked), strict=True):
            if requests[0].watch is not None:
                residual = rms(pytree.tree_map(torch.sub, value, run.point)) / rms(run.point)
                requests[0].watch(residual.item(), self.model.read(run.point)[0])  # type: ignore[union-attr]
            run.tell(value)
            self._look(requests, run)
        self._solves = [solve for solve in self._solves if solve[1].point is not None]

    def _evaluate(self, asked: list[tuple[Any, ...]]) -> list[State]:
        """The map at the points of all solves, in one call."""
        if len(asked) == 1:
            return [self._call(*asked[0])]
        sizes = [num_rows(each[0]) for each in asked]
        value = self._call(*pytree.tree_map(lambda *leaves: torch.cat(leaves), *asked))
        leaves, shape = pytree.tree_flatten(value)
        split = zip(*(leaf.split(sizes) for leaf in leaves), strict=True)
        return [pytree.tree_unflatten(list(part), shape) for part in split]

    def _call(self, y: State, *args: Any) -> State:
        self.calls += 1
        self.rows += num_rows(y)
        return self.module(y, *args)

    def _look(self, requests: list[Request], run: Run) -> None:
        """Answer the puzzles of a solve that have stopped, are late, or were given up."""
        now = time.monotonic()
        ended = [now > each.deadline or each.future.cancelled() for each in requests]
        if any(ended):
            run.stop(torch.tensor(ended, device=run.device), Result.max_steps)
        rows, solution = run.newly_stopped()
        if len(rows):
            logits = self.model.read(solution.value)  # type: ignore[union-attr]
            found = Predictions.of(logits, solution.value, solution)
            for place, row in enumerate(rows.tolist()):
                if (ended := requests[row].ended) is not None:
                    ended(logits[place : place + 1].cpu(), _row(solution.value, place))
                self._answer(requests[row], found.at(torch.tensor([place])))

    def _answer(self, request: Request, found: Predictions | Exception) -> None:
        """Give a puzzle its prediction, or what went wrong, unless it has one or was given up."""
        if request.left:
            return
        request.left = True
        with self._changed:
            self.pending -= 1
            self.running -= 1
        if not request.future.set_running_or_notify_cancel():
            return
        if time.monotonic() > request.deadline:
            found = TimeoutError("The puzzle took too long.")
        if isinstance(found, Exception):
            request.future.set_exception(found)
        else:
            request.future.set_result(found)


def _started(requests: list[Request], y0: State) -> State:
    """The starts of some puzzles, where `y0` has the model's own."""
    if all(request.start is None for request in requests):
        return y0
    rows = [_row(y0, place) for place in range(len(requests))]
    rows = [
        each.start(row) if each.start else row for each, row in zip(requests, rows, strict=True)
    ]
    return pytree.tree_map(lambda *leaves: torch.cat(leaves).contiguous(), *rows)


def _row(state: State, place: int) -> State:
    """The state of one puzzle of a batch."""
    return pytree.tree_map(lambda leaf: leaf[place : place + 1], state)


def num_rows(state: State) -> int:
    """Puzzles of a batch."""
    return len(pytree.tree_leaves(state)[0])
