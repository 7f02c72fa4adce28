"""The HTTP service around an engine: answers, trajectories, health, metrics and a small page.

Requests are not trusted. One that is too large, too slow, too frequent or malformed is refused with
a status and one sentence before it reaches the engine.
"""

import asyncio
import collections
import math
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from torch import Tensor

from tasks.puzzles.config import GridConfig
from tasks.puzzles.evaluate import Predictions
from tasks.puzzles.task import GridTask
from tasks.serving.engine import Engine, Refused, Watch
from tasks.serving.middleware import LimitsMiddleware, Rates

PAGE = Path(__file__).parent / "page"
BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # seconds


class Question(BaseModel):
    """The body of a request: a puzzle, written as on the command line."""

    model_config = ConfigDict(extra="forbid", strict=True)

    puzzle: str


class Answer(BaseModel):
    """The answer of the model, and what tells how reliable it is.

    Attributes:
        answer: One character a cell.
        valid: Whether it keeps the rules and fits the question.
        converged: The solver's verdict.
        residual: rms(f(y) - y) / rms(y); None if it is no finite number.
        steps: Solver updates.
    """

    answer: str
    valid: bool
    converged: bool
    residual: float | None
    steps: int


class Refusal(BaseModel):
    """The reply to a request that is not answered, in one sentence."""

    error: str


class Frame(BaseModel):
    """One evaluation of a solve.

    Attributes:
        residual: As in `Answer`.
        cells: The most likely symbols, one character a cell.
        confidence: How likely each is, as one digit of tenths, rounded down.
    """

    residual: float | None
    cells: str
    confidence: str


class Trajectory(Answer):
    """An answer, and the evaluations of the solve that led to it.

    Attributes:
        question: As it was understood, one character a cell.
        frames: All points at which the solve evaluated the map, in order.
    """

    question: str
    frames: list[Frame]


class Service:
    """The state and the methods that all routes share.

    Args:
        task: The puzzles.
        config: Of the model.
        engine: Solves them.
        timeout: Seconds in which a request must be answered.
        rate: Requests a second from one address; twice as many at once.
        hosts: The hosts that requests may be for; by default any.

    Attributes:
        draining: Whether new requests are refused because the end has come.
        in_flight: Requests that are being worked on.
    """

    def __init__(
        self,
        task: GridTask[Any],
        config: GridConfig,
        engine: Engine,
        timeout: float = 30.0,
        rate: float = 20.0,
        hosts: frozenset[str] | None = None,
    ):
        for name, value in (("timeout", timeout), ("rate", rate)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"`{name}` must be finite and above 0, got {value!r}.")
        self.task, self.config, self.engine, self.timeout = task, config, engine, timeout
        self.rates, self.hosts, self.metrics = Rates(rate), hosts, Metrics(engine)
        self.draining, self.in_flight = False, 0

    def parse(self, puzzle: str) -> Tensor:
        """Symbols of a question, shape (cells,).

        Raises:
            HTTPException: The text is no question; the reply has the message of the task.
        """
        try:
            return torch.tensor(self.task.question(puzzle, self.config))
        except ValueError as error:
            raise HTTPException(400, str(error)) from None

    async def answer(self, request: Request, x: Tensor, watch: Watch | None = None) -> Answer:
        """Solve a question, and check the answer.

        Raises:
            HTTPException: Too many puzzles are waiting, the time is over, or the client has left.
        """
        try:
            future = asyncio.wrap_future(self.engine.submit(x, self.timeout, watch))
        except Refused as refusal:
            raise HTTPException(503, str(refusal), {"retry-after": "1"}) from None
        left = asyncio.ensure_future(_disconnected(request))
        try:
            async with asyncio.timeout(self.timeout):
                await asyncio.wait({future, left}, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                raise HTTPException(499, "The client has left.")  # nginx's number, for the metrics
            return self._judged(x, future.result())
        except TimeoutError:
            raise HTTPException(504, f"No answer within {self.timeout:g} seconds.") from None
        finally:  # which ends the solve of whoever got no answer
            future.cancel()
            left.cancel()

    def _judged(self, x: Tensor, found: Predictions) -> Answer:
        self.metrics.steps += int(found.num_steps[0])
        return Answer(
            answer=self._line(found.classes[0]),
            valid=bool(self.task.is_valid(x[None], found.classes, self.config)[0]),
            converged=bool(found.converged[0]),
            residual=finite(found.residual[0].item()),
            steps=int(found.num_steps[0]),
        )

    def _line(self, classes: Tensor) -> str:
        return self.task.line((classes + self.task.first_symbol).tolist())

    async def trajectory(self, request: Request, x: Tensor) -> Trajectory:
        """Solve as `answer` does, and record every evaluation."""
        frames: list[Frame] = []

        def watch(residual: float, logits: Tensor) -> None:
            likely, classes = logits.float().softmax(-1).max(-1)
            tenths = (likely.nan_to_num(0.0) * 10).long().clamp(0, 9).tolist()
            confidence = "".join(map(str, tenths))
            cells = self._line(classes.cpu())
            frames.append(Frame(residual=finite(residual), cells=cells, confidence=confidence))

        answer = await self.answer(request, x, watch)
        question = self.task.line(x.tolist())
        return Trajectory(question=question, frames=frames, **answer.model_dump())


def create_app(service: Service) -> FastAPI:
    """The ASGI application: routes, limits and error replies of a service."""
    # The interactive pages load scripts of other sites, which our headers forbid.
    app = FastAPI(title=f"Answers to {service.task.name}", docs_url=None, redoc_url=None)
    app.add_middleware(LimitsMiddleware, service=service)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _misshapen)
    config, engine = service.config, service.engine
    example = service.task.example(config)

    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal} for status in (400, 408, 413, 421, 422, 429, 503, 504)
    }

    @app.post("/solve", responses=refusals)
    async def solve(request: Request, question: Question) -> Answer:
        return await service.answer(request, service.parse(question.puzzle))

    @app.post("/trajectory", responses=refusals)
    async def trajectory(request: Request, question: Question) -> Trajectory:
        return await service.trajectory(request, service.parse(question.puzzle))

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> JSONResponse:
        spec = config.spec()
        about = {
            "status": "draining" if service.draining else "ok",
            "task": service.task.name,
            "side": spec.side,
            "units": spec.units,
            "max_steps": engine.max_steps,
            "example": example,
        }
        return JSONResponse(about, 503 if service.draining else 200)

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


async def _disconnected(request: Request) -> None:
    """Wait until the client of a request, whose body was read, hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _misshapen(request: Request, error: Exception) -> JSONResponse:
    """Reply what is wrong, without repeating the input, which may not even be text."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part != "body")
    sentence = f"{ascii(where)[1:-1][:80] or 'The body'}: {first['msg']}."
    expected = 'Send JSON such as {"puzzle": "..."}, as application/json.'
    return JSONResponse({"error": f"{sentence} {expected}"}, 422)


class Metrics:
    """Counts and times of requests, in the text format of Prometheus."""

    PATHS = ("/", "/solve", "/trajectory", "/health", "/metrics")

    def __init__(self, engine: Engine):
        self.engine, self.steps, self.seconds = engine, 0, 0.0
        self.requests: collections.Counter[tuple[str, int]] = collections.Counter()
        self.buckets = [0] * (len(BUCKETS) + 1)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count one reply."""
        self.requests[path if path in self.PATHS else "other", status] += 1
        if path == "/solve" and status == 200:
            self.seconds += seconds
            self.buckets[sum(seconds > bound for bound in BUCKETS)] += 1

    def text(self) -> str:
        """All metrics as Prometheus reads them."""
        lines = ["# TYPE requests_total counter"]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'requests_total{{path="{path}",status="{status}"}} {count}')
        lines.append("# TYPE solve_seconds histogram")
        total = 0
        for bound, count in zip([*map(str, BUCKETS), "+Inf"], self.buckets, strict=True):
            total += count
            lines.append(f'solve_seconds_bucket{{le="{bound}"}} {total}')
        lines += [f"solve_seconds_sum {self.seconds:.6f}", f"solve_seconds_count {total}"]
        waiting = max(self.engine.pending - self.engine.running, 0)
        for name, kind, value in (
            ("solver_steps_total", "counter", self.steps),
            ("network_calls_total", "counter", self.engine.calls),
            ("network_rows_total", "counter", self.engine.rows),
            ("puzzles_running", "gauge", self.engine.running),
            ("puzzles_waiting", "gauge", waiting),
        ):
            lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"


def finite(value: float) -> float | None:
    """The value, or None where it is not finite and JSON cannot hold it."""
    return value if math.isfinite(value) else None
