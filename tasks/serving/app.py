"""The HTTP service around an engine: answers, trajectories, health, metrics and a small page.

Requests are not trusted. One that is too large, too slow, too frequent or malformed is refused with
a status and one sentence before it reaches the engine.
"""

import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from tasks.serving.middleware import LimitsMiddleware
from tasks.serving.schemas import (
    KINDS,
    About,
    Answer,
    Answers,
    OneOrMany,
    Question,
    Questions,
    Refusal,
    Sought,
    Trajectory,
    TrajectoryQuestion,
)
from tasks.serving.service import MOST_CANDIDATES, Recorder, Service

PAGE = Path(__file__).parent / "page"
ABOUT = """Puzzles are written with one character a cell, row after row. Send JSON as
`application/json`. A request that is not answered gets a status and `{"error": "..."}`, one
sentence: 400 and 422 for what is no puzzle or no such request, 408 and 413 for a body that is too
slow or too large, 421 for another host, 429 beyond the rate of an address, 503 where too many
puzzles wait, and 504 where the time was not enough."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal} for status in (400, 408, 413, 421, 422, 429, 503, 504)
}


def create_app(service: Service) -> FastAPI:
    """The ASGI application: routes, limits and error replies of a service."""
    # The interactive pages of FastAPI load scripts of other sites, which our headers forbid.
    app = FastAPI(
        title=f"Answers to {service.task.name}", description=ABOUT, docs_url=None, redoc_url=None
    )
    app.add_middleware(LimitsMiddleware, service=service)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _misshapen)
    _add_solving(app, service)
    _add_looking(app, service)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _add_solving(app: FastAPI, service: Service) -> None:
    """Add the routes that solve puzzles."""

    @app.post("/solve", responses=REFUSALS, summary="Solve a puzzle, or many")
    async def solve(request: Request, question: OneOrMany) -> Answer | Sought | Answers:
        """Answer one puzzle, or up to 64 of them at once.

        One puzzle may be tried harder, from several `starts` or with `attempts` at guessing. Of
        many, each gets a verdict of its own: a text that is no puzzle does not spoil the others.
        """
        client = request.client.host if request.client else ""
        if isinstance(question, Questions):
            _require_room(service, len(question.puzzles), "puzzles")
            service.charge(client, len(question.puzzles) - 1)
            return await service.attended(request, service.answers(question.puzzles))
        _require_possible(service, question)
        x, silent = service.parse(question.puzzle), Recorder(service, wanted=False)
        return await service.attended(request, service.answer(question, x, silent, client))

    @app.post("/trajectory", responses=REFUSALS, summary="Solve a puzzle and show how")
    async def trajectory(request: Request, question: TrajectoryQuestion) -> Trajectory:
        """Answer a puzzle with every point of its solve, as the page at `/` plays it."""
        client = request.client.host if request.client else ""
        _require_possible(service, question)
        about = service.about
        cells = about.side**2
        if question.candidates and cells * len(about.symbols) > MOST_CANDIDATES:
            sentence = (
                f"The candidates of {cells} cells would be more than {MOST_CANDIDATES} a frame. "
                "Ask without `candidates`."
            )
            raise HTTPException(400, sentence)
        x, began = service.parse(question.puzzle), time.monotonic()
        recorder = Recorder(service, candidates=question.candidates)
        answer = await service.attended(request, service.answer(question, x, recorder, client))
        sought: dict[str, Any] = {"starts": 1, "agreeing": 1, "attempts": 0, **dict(answer)}
        return Trajectory(
            **sought,
            question=service.task.line(x.tolist()),
            frames=recorder.frames,
            answered=recorder.answered(answer),
            seconds=time.monotonic() - began,
        )


def _add_looking(app: FastAPI, service: Service) -> None:
    """Add the routes that say what the service is, and how it fares."""

    @app.head("/about", include_in_schema=False)
    @app.get("/about", summary="What is solved here, and by which model")
    async def about() -> About:
        """The model, its card, its reliability by residual, the board, and puzzles to try."""
        return service.about

    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Whether requests are taken")
    async def health() -> JSONResponse:
        """Status 503 while the service ends."""
        about = service.about
        state = {
            "status": "draining" if service.draining else "ok",
            "task": about.task,
            "side": about.side,
            "units": about.units,
            "max_steps": service.engine.max_steps,
            "example": about.examples[0].puzzle,
        }
        return JSONResponse(state, 503 if service.draining else 200)

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", summary="Counts and times, for Prometheus")
    async def metrics() -> PlainTextResponse:
        """Requests by path and status, times to solve, steps, and puzzles in line."""
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(PAGE / "docs.html")


def _require_possible(service: Service, question: Question) -> None:
    """Refuse ways to try harder that exclude each other, or that these puzzles do not allow."""
    noun = service.task.noun
    if question.starts > 1 and question.attempts:
        raise HTTPException(400, "Give `starts` or `attempts`, not both.")
    if question.attempts and not service.about.searches:
        raise HTTPException(
            400,
            f"`attempts` guesses cells of a question, but a {noun} cannot show any of its answer. "
            "Ask for `starts`.",
        )
    _require_room(service, question.starts, "starts")


def _require_room(service: Service, solves: int, name: str) -> None:
    if solves > service.engine.capacity:
        raise HTTPException(
            400,
            f"This service takes {service.engine.capacity} puzzles at a time, so a request may "
            f"not have {solves} `{name}`. Ask for fewer.",
        )


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _misshapen(request: Request, error: Exception) -> JSONResponse:
    """Reply what is wrong, without repeating the input, which may not even be text."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    path = [part for part in first["loc"] if isinstance(part, int) or part != "body"]
    if first["type"] == "json_invalid":
        path = []  # it is the position of the fault
    where = ".".join(str(part) for part in path if part not in KINDS)
    sentence = f"{ascii(where)[1:-1][:80] or 'The body'}: {first['msg']}."
    expected = 'Send JSON such as {"puzzle": "..."}, as application/json.'
    return JSONResponse({"error": f"{sentence} {expected}"}, 422)
