"""Trained models in Python: `tasks.sudoku.load("extreme").solve("53..7...")`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, overload

import torch
from torch import Tensor

from solvers.checks import check_integer
from tasks import shipped
from tasks.output import decimals
from tasks.puzzles.config import GridConfig
from tasks.puzzles.evaluate import BATCH, Predictions, solve_batch
from tasks.puzzles.reliability import Band, band_of, bands
from tasks.puzzles.sizes import at_size, can_resize
from tasks.puzzles.task import GridTask
from tasks.runs import load_model, locate, read_checkpoint, read_config
from tasks.training.values import check_texts

# Seconds that a stream is waited for before what has come is solved: less than a solve takes.
PATIENCE = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a model answers to one puzzle, and how far it can be trusted.

    Attributes:
        question: The puzzle in one line.
        answer: The answer in one line, a character a cell.
        valid: Whether the answer keeps the rules and fits the question, which is checked exactly.
        converged: Whether the solve reached its fixed point; False for a model without a solve.
        residual: How far it was from one: rms(f(y) - y) / rms(y); NaN without a solve.
        num_steps: Solver updates that the puzzle took.
        trained_size: Whether the model was trained on boards of this size. That a converged answer
            is right was only verified on such.
        held_out: The held-out puzzles whose solve ended with such a residual, and how many of them
            were right; None where nobody has counted, and on other sizes and solvers.
    """

    question: str
    answer: str
    valid: bool
    converged: bool
    residual: float
    num_steps: int
    trained_size: bool = True
    held_out: Band | None = None

    def record(self) -> dict[str, Any]:
        """All of this as JSON values."""
        residual = None if math.isnan(self.residual) else self.residual
        return {**dataclasses.asdict(self), "residual": residual}


class Solver:
    """A trained model of puzzles of one size; `for_side` gives one for another.

    Args:
        task: The kind of puzzle.
        model: In evaluation mode.
        config: What the model was trained with.
        path: Where it comes from.
        known: Held-out puzzles by residual; see `reliability.bands`.
        trained_size: Whether it was trained on boards of the size of `config`.

    Attributes:
        path: See above.
        side: Cells in a row of the puzzles that it solves.
        trained_size: See above.
    """

    def __init__(
        self,
        task: GridTask[Any],
        model: Any,
        config: GridConfig,
        path: Path,
        known: Sequence[Band] = (),
        trained_size: bool = True,
    ):
        self.task, self.model, self.config, self.path = task, model, config, path
        self.known, self.trained_size = known, trained_size
        self.side = config.spec().side

    def __repr__(self) -> str:
        size = f"{self.side}x{self.side}"
        return f"<{self.config.model.name} for {self.task.noun}s of {size}, from {self.path}>"

    def for_side(self, side: int) -> Solver:
        """The same weights for puzzles of another side; see `tasks.puzzles.sizes`.

        Raises:
            TypeError: The side is no whole number.
            ValueError: They belong to the size that they were trained on, or there is no such side.
        """
        if not isinstance(side, int) or isinstance(side, bool):
            raise TypeError(f"`side` must be a whole number: got a {type(side).__name__}.")
        if side == self.side:
            return self
        model, config, _ = at_size(self.model, self.config, side, self.path, self.task.noun)
        return Solver(self.task, model, config, self.path, trained_size=False)

    @overload
    def solve(  # pyright: ignore[reportOverlappingOverload]
        self, puzzles: str, *, max_steps: int | None = None
    ) -> Answer: ...

    @overload
    def solve(
        self, puzzles: Iterable[str], *, max_steps: int | None = None
    ) -> Iterator[Answer]: ...

    def solve(
        self, puzzles: str | Iterable[str], *, max_steps: int | None = None
    ) -> Answer | Iterator[Answer]:
        """Answer one puzzle, or any number of them.

        It looks for no solution of its own: a puzzle without exactly one is answered, too, and
        `valid` says whether the answer keeps the rules.

        Of many, a batch at a time is read, solved and handed out, so that an endless stream takes
        no more memory than a batch. Where puzzles come slowly, a batch is what came within a tenth
        of a second, or the one puzzle that took longer. Equal texts in a batch are solved once.

        Args:
            puzzles: One puzzle as text, or an iterable of them.
            max_steps: Budget of solver updates; by default the one of the model's training.

        Returns:
            The answer, or an iterator over the answers in the order of the puzzles.

        Raises:
            ValueError: A text is no puzzle of this size; of many, the message says which, and the
                answers to those before it come first.
            TypeError: Something else came than text.
        """
        if max_steps is not None:
            check_integer("max_steps", max_steps, 1)
        if isinstance(puzzles, str):
            question = self._question(puzzles)
            (answer,) = self._answers([question], max_steps)
            return answer
        check_texts("puzzles", puzzles)
        return self._stream(iter(puzzles), max_steps)

    def _stream(self, texts: Iterator[str], max_steps: int | None) -> Iterator[Answer]:
        number = 0
        while batch := _next_batch(texts):
            questions: dict[str, list[int]] = {}  # equal texts are read and solved once
            for at, text in enumerate(batch):
                number += 1
                if not isinstance(text, str):
                    yield from self._in_order(batch[:at], questions, max_steps)
                    raise TypeError(
                        f"{self._named(number)} must be text: got {type(text).__name__}."
                    )
                if text in questions:
                    continue
                try:
                    questions[text] = self._question(text)
                except ValueError as error:
                    yield from self._in_order(batch[:at], questions, max_steps)
                    raise ValueError(f"{self._named(number)}: {error}") from error
            yield from self._in_order(batch, questions, max_steps)

    def _named(self, number: int) -> str:
        return f"{self.task.noun.capitalize()} {number} of the iterable"

    def _in_order(
        self, texts: Sequence[str], questions: dict[str, list[int]], max_steps: int | None
    ) -> Iterator[Answer]:
        """The answers to texts, each of which is a key of `questions`."""
        answers = self._answers(list(questions.values()), max_steps)
        found = dict(zip(questions, answers, strict=True))
        return (found[text] for text in texts)

    def _question(self, text: str) -> list[int]:
        try:
            return self.task.question(text, self.config)
        except ValueError as error:
            try:
                side = math.isqrt(len(self.task.question(text)))
            except ValueError:
                raise error from None
            raise type(error)(f"{error} {self._advice(side)}") from error

    def _advice(self, side: int) -> str:
        """What answers puzzles of another side, which came here."""
        paths = shipped.paths(self.task.name)
        sides = {
            path.stem: read_config(self.task, read_checkpoint(path)).spec().side for path in paths
        }
        trained = [
            f"`load({name!r})`, which was trained on them" for name in sides if sides[name] == side
        ]
        if can_resize(self.config, side):
            trained.append(f"`for_side({side})` of this one, whose weights fit")
        if not trained:
            return "Train a model on that size, or name a run that was."
        return f"For {self.task.noun}s of {side}x{side}: {', or '.join(trained)}."

    def _answers(self, questions: list[list[int]], max_steps: int | None) -> Iterator[Answer]:
        if not questions:
            return
        x = torch.tensor(questions)
        budget = self.config.solve.eval_max_steps if max_steps is None else max_steps
        found, _ = solve_batch(self.model, x, max_steps=budget)
        yield from answers(self.task, self.config, x, found, self.known, self.trained_size)


def _next_batch(texts: Iterator[str]) -> list[str]:
    """The next texts: a whole batch, or those that came in time, but at least one if any is left.

    A batch has no fixed smaller size at first: who reads a file loses no speed, and who waits for
    a slow source gets each answer soon, however long it goes on.
    """
    batch: list[str] = []
    end = monotonic() + PATIENCE
    for text in itertools.islice(texts, BATCH):
        batch.append(text)
        if monotonic() >= end:
            break
    return batch


def answers(
    task: GridTask[Any],
    config: GridConfig,
    x: Tensor,
    found: Predictions,
    known: Sequence[Band],
    trained_size: bool,
) -> Iterator[Answer]:
    """The answers of a solve.

    Args:
        task: The kind of puzzle.
        config: Of the model.
        x: Questions, shape (puzzles, cells).
        found: What the model predicts.
        known: Held-out puzzles by residual; see `reliability.bands`.
        trained_size: Whether the model was trained on boards of this size.
    """
    valid = task.is_valid(x, found.classes, config)
    cells = found.classes + task.first_symbol
    columns = (x, cells, valid, found.converged, found.num_steps)
    for question, cells, ok, converged, num_steps, residual in zip(
        *(column.tolist() for column in columns), decimals(found.residual), strict=True
    ):
        yield Answer(
            task.line(question), task.line(cells), ok, converged, residual, num_steps,
            trained_size, band_of(known, residual) if ok else None,
        )  # fmt: skip


def load(
    task: GridTask[Any], name: str | Path, *, device: str = "auto", solver: str | None = None
) -> Solver:
    """A trained model, ready to solve.

    Args:
        task: The kind of puzzle.
        name: A model that comes with the package, the folder of a run, or a checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:N".
        solver: Another registered solver than the model's.

    Raises:
        CheckpointError: There is no such model, or its file is damaged.
        TypeError: The name is neither text nor a path.
        ValueError: Unknown device or solver.
    """
    path = locate(task.name, name)
    model, config = load_model(task, path, device=device, solver=solver)
    return Solver(task, model, config, path, bands(path) if solver is None else ())
