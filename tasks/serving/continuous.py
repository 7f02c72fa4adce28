"""Continuous batching: a puzzle joins the running solves when it comes, and leaves when it is done.

Puzzles that start together share a solve, by the code that also evaluates sets; each is answered
as soon as it has stopped, while the others go on. What the running solves share is the map: once
each of them has asked for its next evaluation, a call of the network answers all. So a solver
keeps its memory from its first step to its last, whoever joins or leaves, and no answer depends
on the company but for rounding.

Cost: a step's own cost in Python is paid once for the puzzles that started together. So those that
come while others make their first step start after it, and under load `together` of them start
when as many slots are free.
"""

import dataclasses
import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from models import GridModel
from solvers import Result, Solution
from solvers.ledger import Ledger
from solvers.torch_internals import pytree
from solvers.types import State
from tasks.puzzles.evaluate import Predictions, rms, solve_batch
from tasks.serving.meeting import Meeting
from tasks.serving.supervised import Supervised, stopped

Watch = Callable[[float, Tensor], None]
"""Called with the relative residual and the logits, shape (cells, symbols), at each point at which
a solve evaluates its map."""

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
        future: The answer to come.
    """

    x: Tensor
    deadline: float
    watch: Watch | None
    future: Future[Predictions] = dataclasses.field(default_factory=Future)


class Company:
    """The puzzles of one solve: who has stopped is answered, and who is late is told to leave.

    Args:
        requests: The puzzles, in the order of the solve's rows.
        judge: Makes a prediction from the solution for one puzzle.
        leave: Called for each that has ended, before anybody hears of it.
        begun: Called after the first step.
    """

    def __init__(
        self,
        requests: list[Request],
        judge: Callable[[Solution], Predictions],
        leave: Callable[[], None],
        begun: Callable[[], None],
    ):
        self.requests, self.judge, self.leave, self.begun = requests, judge, leave, begun
        self.num_steps = 0
        self.known: set[int] = set()

    def after_step(self, ledger: Ledger) -> None:
        """Look at the books of the solve."""
        self.num_steps += 1
        if self.num_steps == 1:
            self.begun()
        now = time.monotonic()
        late = [now > request.deadline for request in self.requests]
        if any(late):
            mask = torch.tensor(late, device=ledger.result.device)
            ledger.stop(mask if ledger.index is None else mask[ledger.index], Result.max_steps)
        for row, solution in stopped(ledger, self.known):
            self.answer(row, self.judge(solution))

    def answer(self, row: int, found: Predictions | BaseException) -> None:
        """Give a puzzle its prediction, or what went wrong, unless it has one."""
        request = self.requests[row]
        if request.future.done():
            return
        self.leave()
        if time.monotonic() > request.deadline:
            found = TimeoutError("The puzzle took too long.")
        if isinstance(found, BaseException):
            request.future.set_exception(found)
        else:
            request.future.set_result(found)


class Engine:
    """Solve puzzles that arrive one by one, as many at a time as there are slots.

    Args:
        model: In evaluation mode. Its map and solver are wrapped: use the model through the engine
            alone until `close` gives it back.
        max_steps: Budget of solver updates for a puzzle.
        max_batch: Slots: puzzles that are solved at a time.
        max_waiting: Puzzles that may wait for a slot.

    Attributes:
        together: Slots that must be free before some of those that wait may start, if not all can.
        pending: Puzzles that run or wait.
        running: Puzzles that are being solved.

    Raises:
        ValueError: The model has no solve, or a number is out of its range.
    """

    def __init__(self, model: GridModel, max_steps: int, max_batch: int, max_waiting: int):
        if model.solving is None:
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
        # A quarter at most: free slots that wait for more to become free are not used.
        self.together = min(MOST_TOGETHER, max(max_batch // 4, 1))
        layer, self._here = model.solving, threading.local()
        self.meeting, self.solver = Meeting(layer.module), layer.solver
        layer.module = self.meeting
        layer.solver = Supervised.around(self.solver, self._after_step)
        self._slots = ThreadPoolExecutor(max_batch, "slot")
        self._lock = threading.Condition()
        self._closed = False
        self._waiting: deque[Request] = deque()
        self._starting: Company | None = None
        self.pending = self.running = 0

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
            request = Request(x, time.monotonic() + timeout, watch)
            self._waiting.append(request)
            self._start()
        return request.future

    def close(self) -> None:
        """Take no more, finish what was taken, and give the model back."""
        with self._lock:
            self._closed = True
            self._lock.wait_for(lambda: self.pending == 0)
        self._slots.shutdown()
        self.meeting.owner.shutdown()
        layer = self.model.solving  # type: ignore[union-attr]
        layer.module, layer.solver = self.meeting.module, self.solver

    def _start(self) -> None:
        """Begin solves while there is room; holds the lock."""
        while self._waiting and self._starting is None:
            free = self.max_batch - self.running
            if free < min(len(self._waiting), self.together):
                return
            requests = self._next(min(free, self.together))
            self.running += len(requests)
            if requests:
                company = Company(requests, self._judged, self._leave, self._begun)
                self._starting = company
                solved = self._slots.submit(self._solve, company)
                solved.add_done_callback(functools.partial(self._end, company))

    def _next(self, most: int) -> list[Request]:
        """Take puzzles that start together, but those that nobody waits for any more."""
        requests: list[Request] = []
        while self._waiting and len(requests) < most:
            # Whoever watches sees each point, so has a solve of its own.
            if requests and not (requests[-1].watch is self._waiting[0].watch is None):
                break
            request = self._waiting.popleft()
            if request.future.set_running_or_notify_cancel():
                requests.append(request)
            else:
                self.pending -= 1
        return requests

    def _solve(self, company: Company) -> None:
        """Answer some puzzles, each when it is done."""
        requests = company.requests
        self._here.company = company
        with self.meeting.member(self._look(requests[0].watch)):
            x = torch.stack([request.x for request in requests])
            found, _ = solve_batch(self.model, x, max_steps=self.max_steps)
        for row in range(len(requests)):
            company.answer(row, found.at(torch.tensor([row])))

    def _end(self, company: Company, solved: "Future[None]") -> None:
        """If the solve failed, so have the puzzles that it has not answered."""
        if self._starting is company:
            self._begun()
        error = solved.exception()
        if error is not None:
            for row in range(len(company.requests)):
                company.answer(row, error)

    def _look(self, watch: Watch | None) -> Callable[[State, State], None] | None:
        if watch is None:
            return None

        def look(y: State, fy: State) -> None:
            residual = rms(pytree.tree_map(torch.sub, fy, y)) / rms(y)
            watch(residual.item(), self.model.read(y)[0])  # type: ignore[union-attr]

        return look

    def _after_step(self, ledger: Ledger) -> None:
        company = getattr(self._here, "company", None)
        if company is not None:
            company.after_step(ledger)

    def _judged(self, solution: Solution) -> Predictions:
        logits = self.model.read(solution.value)  # type: ignore[union-attr]
        return Predictions.of(logits, solution.value, solution)

    def _begun(self) -> None:
        """Those that start have made a step, or have ended: the next may start."""
        with self._lock:
            self._starting = None
            self._start()

    def _leave(self) -> None:
        """A puzzle has left its slot."""
        with self._lock:
            self.pending -= 1
            self.running -= 1
            self._start()
            self._lock.notify_all()
