"""The bodies of requests and replies, as `/openapi.json` describes them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from tasks.puzzles.reliability import Band

MOST_PUZZLES = 64  # of a request
MOST_STARTS = 8
MOST_ATTEMPTS = 16


class Question(BaseModel):
    """The body of a request: a puzzle, written as on the command line, and how hard to try.

    Attributes:
        puzzle: One character a cell.
        starts: Solve it from so many starts, the model's own and perturbed ones, and take an answer
            that keeps the rules if there is one, and of equals the one with the smallest residual.
        attempts: Where the answer breaks the rules, begin anew up to so many times with guessed
            cells. Not for puzzles of which no further cell can be given, such as mazes.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"puzzle": "53..7...."}]}
    )

    puzzle: str
    starts: int = Field(1, ge=1, le=MOST_STARTS)
    attempts: int = Field(0, ge=0, le=MOST_ATTEMPTS)


class Questions(BaseModel):
    """The body of a request for many puzzles, each solved once.

    Attributes:
        puzzles: One to 64 of them; the rate limit counts each.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"puzzles": ["53..7...."]}]}
    )

    puzzles: list[str] = Field(min_length=1, max_length=MOST_PUZZLES)


def _kind(body: Any) -> str:
    return "many" if isinstance(body, Questions | dict) and "puzzles" in dict(body) else "one"


KINDS = ("one", "many")
OneOrMany = Annotated[
    Annotated[Question, Tag("one")] | Annotated[Questions, Tag("many")], Discriminator(_kind)
]


class TrajectoryQuestion(Question):
    """A puzzle whose solve is shown.

    Attributes:
        candidates: Whether each frame also says how likely every symbol of every cell is. Refused
            for boards on which these are more than 1,000.
    """

    candidates: bool = False


class Answer(BaseModel):
    """The answer of the model, and what tells how reliable it is.

    Attributes:
        answer: One character a cell.
        valid: Whether it keeps the rules and fits the question.
        converged: The solver's verdict.
        residual: rms(f(y) - y) / rms(y); None if it is no finite number.
        steps: Solver updates.
        held_out: The held-out puzzles whose solve ended with such a residual, and how many of them
            were right; None where they were not counted, and for an answer with guessed cells.
    """

    answer: str
    valid: bool
    converged: bool
    residual: float | None
    steps: int
    held_out: Band | None = None


class Sought(Answer):
    """An answer that was sought from several starts or with guesses.

    `residual` and `converged` are those of the solve that gave the answer, `steps` those of all.

    Attributes:
        starts: Solves from different starts.
        agreeing: How many of them gave this answer.
        attempts: Attempts with guessed cells that were made.
    """

    starts: int
    agreeing: int
    attempts: int


class Refusal(BaseModel):
    """The reply to a request, or to one puzzle of many, that is not answered, in one sentence."""

    error: str


class Answers(BaseModel):
    """The answers to many puzzles.

    Attributes:
        answers: One for each, in order: an answer, or why the text is no puzzle.
        valid: How many are valid.
    """

    answers: list[Answer | Refusal]
    valid: int


class Frame(BaseModel):
    """One evaluation of a solve.

    Attributes:
        residual: As in `Answer`.
        cells: The most likely symbols, one character a cell.
        confidence: How likely each is, as one digit of tenths, rounded down.
        candidates: How likely every symbol of every cell is, cell after cell, as two digits of
            percent, at most 99; empty unless it was asked for.
    """

    residual: float | None
    cells: str
    confidence: str
    candidates: str = ""


class Trajectory(Sought):
    """An answer, and the evaluations of the solve that led to it.

    Attributes:
        question: As it was understood, one character a cell.
        frames: All points at which the solve evaluated the map, in order. After a search, those of
            the first solve, followed by those of the solve that found the answer.
        answered: The number of the frame that the answer is read from: the last one of a solve that
            has converged, or else the one with the smallest residual.
        seconds: From the question to the answer, waiting included.
    """

    question: str
    frames: list[Frame]
    answered: int
    seconds: float


class Example(BaseModel):
    """A puzzle to try.

    Attributes:
        name: What it is called on the page.
        puzzle: One character a cell.
    """

    name: str
    puzzle: str


class About(BaseModel):
    """What the service solves, with which model, and how far that can be trusted.

    Attributes:
        task: The kind of puzzle.
        noun: What one puzzle is called.
        verdict: What a valid answer is called.
        name: The model's.
        parameters: Numbers that it has learned.
        card: Rows of its model card by their heading; empty if it has none.
        reliability: Held-out puzzles by residual; empty where they were not counted.
        side: Rows and columns of a board.
        units: For each kind of unit, such as rows, the unit of every cell.
        symbols: The characters of an answer, in the order of `Frame.candidates`.
        blank: The character of a cell to fill in; None where any character is a part of the puzzle.
        all_different: Whether a symbol may stand only once in a unit.
        max_steps: Budget of solver updates.
        tolerance: Relative residual at which a solve has converged; None if it has no such number.
        searches: Whether `attempts` may be asked for.
        examples: Puzzles to try.
    """

    task: str
    noun: str
    verdict: str
    name: str
    parameters: int
    card: dict[str, str]
    reliability: list[Band]
    side: int
    units: list[list[int]]
    symbols: str
    blank: str | None
    all_different: bool
    max_steps: int
    tolerance: float | None
    searches: bool
    examples: list[Example]
