"""What all routes of the service share: questions are parsed, solved and judged here."""

import asyncio
import math
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import torch
from fastapi import Request
from starlette.exceptions import HTTPException
from torch import Tensor

from solvers.types import State
from tasks.output import decimal
from tasks.puzzles.config import GridConfig
from tasks.puzzles.evaluate import Predictions, perturbed
from tasks.puzzles.reliability import band_of
from tasks.puzzles.search import Starts, attempts_at
from tasks.puzzles.task import GridTask
from tasks.serving.engine import Ended, Engine, Refused, Start, Watch
from tasks.serving.metrics import Metrics
from tasks.serving.middleware import Rates, client_of
from tasks.serving.schemas import About, Answer, Answers, Frame, Question, Refusal, Sought

NOISE = 1.0  # of the perturbed starts, as in `eval --breadth`
GUESSES = 3  # cells that an attempt assumes, as in `eval --attempts`
MOST_CANDIDATES = 1000  # in a frame
PERCENT = [f"{number:02}" for number in range(100)]

T = TypeVar("T")


class Service:
    """The state and the methods that all routes share.

    Args:
        task: The puzzles.
        config: Of the model.
        engine: Solves them.
        timeout: Seconds in which a request must be answered.
        rate: Requests a second from one address; twice as many at once.
        hosts: The hosts that requests may be for; by default any.
        about: The model's name and what is known of it; see `about.describe`.

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
        about: dict[str, Any] | None = None,
    ):
        for name, value in (("timeout", timeout), ("rate", rate)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"`{name}` must be finite and above 0, got {value!r}.")
        self.task, self.config, self.engine, self.timeout = task, config, engine, timeout
        self.rates, self.hosts, self.metrics = Rates(rate), hosts, Metrics(engine)
        self.draining, self.in_flight = False, 0
        self.about = self._about(
            about or {"name": config.model.name, "card": {}, "reliability": []}
        )

    def _about(self, known: dict[str, Any]) -> About:
        task, spec, model = self.task, self.config.spec(), self.engine.model
        fills = task.first_symbol == 1
        answers = task.symbols[task.first_symbol :][: spec.num_symbols]
        return About(
            task=task.name, noun=task.noun, verdict=task.verdict,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            side=spec.side, units=[list(unit) for unit in spec.units], symbols=answers,
            blank=task.symbols[0] if fills else None, all_different=task.all_different,
            max_steps=self.engine.max_steps,
            tolerance=getattr(self.engine.layer.solver, "rtol", None), searches=fills,
            examples=[
                {"name": name, "puzzle": puzzle}  # type: ignore[list-item]
                for name, puzzle in task.examples(self.config).items()
            ],
            **known,
        )  # fmt: skip

    def parse(self, puzzle: str) -> Tensor:
        """Symbols of a question, shape (cells,).

        Raises:
            HTTPException: The text is no question; the reply has the message of the task.
        """
        try:
            return torch.tensor(self.task.question(puzzle, self.config))
        except ValueError as error:
            raise HTTPException(400, str(error)) from None

    async def attended(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of some work, which ends if the time is over or the client leaves.

        Raises:
            HTTPException: Too many puzzles are waiting, the time is over, or the client has left.
        """
        task = asyncio.ensure_future(work)
        left = asyncio.ensure_future(_disconnected(request))
        try:
            async with asyncio.timeout(self.timeout):
                await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise HTTPException(499, "The client has left.")  # nginx's number, for the metrics
            return task.result()
        except Refused as refusal:
            raise HTTPException(503, str(refusal), {"retry-after": "1"}) from None
        except TimeoutError:
            raise HTTPException(504, f"No answer within {self.timeout:g} seconds.") from None
        finally:  # which ends the solves of whoever got no answer
            task.cancel()
            left.cancel()

    async def answer(
        self, question: Question, x: Tensor, recorder: "Recorder", client: str
    ) -> Answer:
        """Solve a question once, from several starts, or with guesses, and check the answer.

        Args:
            question: As it was asked.
            x: Its symbols, shape (cells,).
            recorder: Keeps the frames of the solve that led to the answer, if it keeps any.
            client: Whose rate further solves count against.
        """
        if question.starts > 1:
            self.charge(client, question.starts - 1)
            return await self._from_starts(x, question.starts, recorder)
        if question.attempts:
            return await self._searched(x, question.attempts, recorder, client)
        found = await self._solved(x, recorder.watch)
        return self._judged(x, found, int(found.num_steps[0]))

    async def answers(self, texts: list[str]) -> Answers:
        """Solve many puzzles, each once; a text that is no puzzle gets a verdict of its own."""

        async def one(text: str) -> Answer | Refusal:
            try:
                x = self.parse(text)
            except HTTPException as refusal:
                return Refusal(error=refusal.detail)
            found = await self._solved(x)
            return self._judged(x, found, int(found.num_steps[0]))

        replies = await _together([one(text) for text in texts])
        valid = sum(isinstance(reply, Answer) and reply.valid for reply in replies)
        return Answers(answers=replies, valid=valid)

    async def _solved(
        self,
        x: Tensor,
        watch: Watch | None = None,
        start: Start | None = None,
        ended: Ended | None = None,
    ) -> Predictions:
        """Solve one puzzle; who cancels this frees its slot."""
        future = self.engine.submit(x, self.timeout, watch, start, ended)
        found = await asyncio.wrap_future(future)
        self.metrics.steps += int(found.num_steps[0])
        return found

    async def _from_starts(self, x: Tensor, count: int, recorder: "Recorder") -> Sought:
        """The best of several starts, which is one that keeps the rules, and then by residual."""

        def perturbing(number: int) -> Start | None:
            generator = torch.Generator().manual_seed(number)
            return (lambda own: perturbed(own, NOISE, generator)) if number else None

        recorders = [recorder.another() for _ in range(count)]
        solves = [self._solved(x, recorders[i].watch, perturbing(i)) for i in range(count)]
        found = await _together(solves)
        valid = torch.stack([self.task.is_valid(x[None], f.classes, self.config) for f in found])
        best = int(Starts(found, valid).best("valid", count))
        recorder.frames = recorders[best].frames
        agreeing = sum(torch.equal(each.classes, found[best].classes) for each in found)
        answer = self._judged(x, found[best], sum(int(each.num_steps[0]) for each in found))
        return Sought(**answer.model_dump(), starts=count, agreeing=agreeing, attempts=0)

    async def _searched(
        self, x: Tensor, attempts: int, recorder: "Recorder", client: str
    ) -> Sought:
        """The first answer that keeps the rules, by a search with guessed cells."""
        kept: list[tuple[Tensor, State]] = []

        def judge(question: Tensor, classes: Tensor) -> Tensor:
            return self.task.is_valid(question, classes, self.config)

        searching = attempts_at(
            x[None], judge, self.task.assume, attempts, GUESSES, torch.Generator().manual_seed(0)
        )
        solves: list[tuple[Predictions, Recorder]] = []
        asked = next(searching)
        try:
            while True:
                question, state = asked
                if solves:
                    self.charge(client, 1)
                start = None if state is None else lambda own, state=state: state
                record = recorder.another()
                found = await self._solved(
                    question[0], record.watch, start, lambda *end: kept.append(end)
                )
                solves.append((found, record))
                asked = searching.send(kept.pop())
        except StopIteration as ended:
            after = [bool(judge(x[None], classes)[0]) for classes in ended.value]
        made = after.index(True) if after[-1] else attempts
        # An attempt that fails is forgotten, so the answer is that of the first solve or the last.
        found = solves[-1 if after[-1] else 0][0]
        recorder.frames = solves[0][1].frames
        if made and after[-1]:
            recorder.frames = recorder.frames + solves[-1][1].frames
        steps = sum(int(each.num_steps[0]) for each, _ in solves)
        answer = self._judged(x, found, steps, as_asked=found is solves[0][0])
        return Sought(**answer.model_dump(), starts=1, agreeing=1, attempts=made)

    def _judged(self, x: Tensor, found: Predictions, steps: int, as_asked: bool = True) -> Answer:
        """An answer with its verdicts; `as_asked`: its solve was of the question alone."""
        residual = finite(decimal(found.residual[0]))
        return Answer(
            answer=self.line(found.classes[0]),
            valid=bool(self.task.is_valid(x[None], found.classes, self.config)[0]),
            converged=bool(found.converged[0]),
            residual=residual,
            steps=steps,
            held_out=band_of(self.about.reliability, residual) if as_asked else None,
        )

    def line(self, classes: Tensor) -> str:
        """An answer in one line, one character a cell."""
        return self.task.line((classes + self.task.first_symbol).tolist())

    def charge(self, client: str, solves: int) -> None:
        """Count solves of a request beyond its first against the rate of its address."""
        self.rates.charge(client_of(client), solves, time.monotonic())


class Recorder:
    """Keeps the frames of a solve.

    Args:
        service: Whose puzzles are solved.
        wanted: Whether frames are kept at all.
        candidates: Whether they have all candidates.

    Attributes:
        frames: Those kept so far.
    """

    def __init__(self, service: Service, wanted: bool = True, candidates: bool = False):
        self.service, self.wanted, self.candidates = service, wanted, candidates
        self.frames: list[Frame] = []

    @property
    def watch(self) -> Watch | None:
        """What the engine calls at each evaluation; None where no frames are wanted."""
        return self._add if self.wanted else None

    def another(self) -> "Recorder":
        """An empty one of the same kind."""
        return Recorder(self.service, self.wanted, self.candidates)

    def answered(self, answer: Answer) -> int:
        """The number of the frame that an answer was read from."""

        def distance(number: int) -> tuple[bool, float, int]:
            frame, nowhere = self.frames[number], float("inf")
            known = frame.residual is not None and answer.residual is not None
            apart = abs(frame.residual - answer.residual) if known else nowhere  # type: ignore[operator]
            return frame.cells != answer.answer, apart, -number

        return min(range(len(self.frames)), key=distance)

    def _add(self, residual: float, logits: Tensor) -> None:
        probabilities = logits.float().softmax(-1).nan_to_num(0.0).cpu()
        likely, classes = probabilities.max(-1)
        tenths = (likely * 10).long().clamp(0, 9).tolist()
        frame = Frame(
            residual=finite(residual),
            cells=self.service.line(classes),
            confidence="".join(map(str, tenths)),
        )
        if self.candidates:
            percent = (100 * probabilities).round().long().clamp(0, 99).flatten().tolist()
            frame.candidates = "".join(map(PERCENT.__getitem__, percent))
        self.frames.append(frame)


async def _together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The outcomes of some works; if one fails, the others end."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _disconnected(request: Request) -> None:
    """Wait until the client of a request, whose body was read, hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def finite(value: float) -> float | None:
    """The value, or None where it is not finite and JSON cannot hold it."""
    return value if math.isfinite(value) else None
