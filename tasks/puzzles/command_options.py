"""The options of the commands of a grid puzzle, but for those of training and of comparisons."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from tasks.flags import require_defaults
from tasks.puzzles.evaluate import Choice
from tasks.training.options import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which trained model a command uses, and how.

    Attributes:
        checkpoint: The model: a file, a run's folder, or the name of one that comes with the
            package. By default the newest under `runs/`, or else one of the package; of the size
            of the puzzles that are named, if there is one.
        max_steps: Budget of solver updates; by default the run's.
        solver: Another solver than the run's.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    checkpoint: Path | None = None
    max_steps: int | None = None
    solver: str | None = None
    device: str = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions(ModelOptions):
    """Evaluate a trained model.

    Attributes:
        data: A file of puzzles; by default the test puzzles of the run.
        skip_bad: Skip malformed lines of the file instead of stopping at the first.
        limit: Only so many puzzles, from the top.
        breadth: Starts per puzzle: the model's own and perturbed ones.
        choose: How one answer is chosen from several starts: the smallest residual, the most
            frequent answer, or one that keeps the rules.
        noise: Distance of the perturbed starts, relative to the size of the model's own.
        path_noise: Noise in every call of EqR's network, as published; no solve then converges.
        attempts: Search: where an answer breaks the rules, begin anew so many times with guessed
            cells. Needs puzzles of which further cells can be given, such as Sudoku.
        guesses: Cells guessed in an attempt, at most, one after the other.
        quick: Only the scores at the budget: no perturbed restart, no curves.
        compile: Compile the blocks first, for some 20 s: worth it for a thousand puzzles.
        json: Also write the result here, and as a page beside it (`.html`); `-` prints it on a
            terminal too.
        draw: A folder for the plots of depth, breadth and calibration.
    """

    data: Path | None = None
    skip_bad: bool = False
    limit: int | None = None
    breadth: int = 1
    choose: Choice = "residual"
    noise: float = 1.0
    path_noise: bool = False
    attempts: int = 0
    guesses: int = 3
    quick: bool = False
    compile: bool = False
    json: Path | None = None
    draw: Path | None = None

    def __post_init__(self) -> None:
        for name in ("breadth", "max_steps", "limit", "guesses"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{flag(name)}` must be at least 1, got {value}.")
        if self.attempts < 0:
            raise ValueError(f"`--attempts` must be at least 0, got {self.attempts}.")
        if self.breadth == 1:
            require_defaults(self, ("choose", "noise"), "with `--breadth` above 1")
        if self.attempts == 0:
            require_defaults(self, ("guesses",), "with `--attempts`")
        if self.data is None:
            require_defaults(self, ("skip_bad",), "with `--data`")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolveOptions(ModelOptions):
    """Solve puzzles with a trained model.

    Attributes:
        puzzles: Puzzles, files with one per line or with a column `question`, or `-` for the
            standard input.
        json: Also write the answers here; `-` prints them. In a pipe they are then alone.
        draw: A folder for pictures of the last puzzle's solve.
    """

    puzzles: Annotated[tuple[str, ...], tyro.conf.Positional]
    json: Path | None = None
    draw: Path | None = None

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"`--max-steps` must be at least 1, got {self.max_steps}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a trained model as a program that runs without this project.

    Attributes:
        file: The program, which ends in `.pt2`; `torch.export.load` reads it.
        checkpoint: The model, as in `eval`.
        max_steps: Budget of solver updates; by default the run's.
        solver: By default the model's; one that only steps, such as "anderson".
    """

    file: tyro.conf.Positional[Path]
    checkpoint: Path | None = None
    max_steps: int | None = None
    solver: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Make a checkpoint of released weights: of TRM, HRM or EqR, as their code has written them.

    Attributes:
        file: The file, or the folder that it is in, perhaps with `all_config.yaml` beside it.
        preset: The network, such as "sudoku-extreme-trm-7m".
        out: Folder of the checkpoint; by default in `runs/`.
    """

    file: tyro.conf.Positional[Path]
    preset: str
    out: Path | None = None
