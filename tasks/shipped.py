"""The trained models that come with the package, in the folder `weights` of their task.

Each is a checkpoint, `NAME.safetensors`, beside its model card, `NAME.md`, and perhaps a file of
held-out questions, `NAME.csv`.
"""

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from solvers.registry import unknown
from tasks.checkpoints.file import CheckpointError, NewerFormat

SUFFIX = ".safetensors"


def folder(task: str) -> Path:
    """Where the models of a task are."""
    return Path(__file__).parent / task / "weights"


def names(task: str) -> list[str]:
    """The names of a task's models, in alphabetical order."""
    return sorted(path.stem for path in folder(task).glob(f"*{SUFFIX}"))


def paths(task: str) -> list[Path]:
    """The files of a task's models, in the order of `names`."""
    return [folder(task) / f"{name}{SUFFIX}" for name in names(task)]


def path_of(task: str, name: str) -> Path:
    """The file of a model by its name.

    Raises:
        CheckpointError: There is none of this name; the message has those that there are.
    """
    if name in (known := names(task)):
        return folder(task) / f"{name}{SUFFIX}"
    raise CheckpointError(
        unknown(f"{task} model", name, known, "Models that come with the package")
    )


def holds(path: Path | None) -> bool:
    """Whether a file is one of these models, under whichever path it is named."""
    if path is None:
        return False
    weights = path.resolve().parent
    return weights.name == "weights" and weights.parent.parent == Path(__file__).resolve().parent


def refuse_resume(task: str, named: Path) -> None:
    """Refuse to go on with training from a model of the package, which has its weights alone.

    Raises:
        CheckpointError: A user names one, by its name or by its file.
    """
    by_name = str(named) in names(task) and not named.exists()
    if not (by_name or holds(named)):
        return
    raise CheckpointError(
        f"`--resume {named}` names a model that comes with the package. It has no state of the "
        f"optimiser, so no run can go on from it. `train --weights {named}` begins a new run with "
        f"its weights; {named.stem}.md beside it, in {folder(task)}, has options that fit."
    )


def called(path: Path) -> str:
    """How a command names the model that it uses."""
    if not holds(path):
        return str(path)
    return f"the model {path.stem!r} that comes with the package ({path})"


def held_out(path: Path | None) -> Path | None:
    """The questions that come with a model, to evaluate it on; None if there are none."""
    if path is None or not holds(path):
        return None
    questions = path.with_suffix(".csv")
    return questions if questions.is_file() else None


def card(path: Path) -> dict[str, str]:
    """The rows of a model's card by their heading, as plain text."""
    text = _card(path)
    rows = re.findall(r"^\| \*\*([^*]+)\*\* \| (.+) \|$", text, re.MULTILINE)
    return {heading: row.replace("`", "") for heading, row in rows}


def reliability(path: Path) -> list[dict[str, float]]:
    """How many test puzzles were right by the residual at the end, from a model's card.

    Returns:
        `low` and `high`, the ends of each range of residuals, `puzzles` and `right`; an empty list
        for a model whose card has no such table.
    """
    text = _card(path)
    rows = re.findall(r"^\| (1e\S+) to (1e\S+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    return [
        {"low": float(low), "high": float(high), "puzzles": int(puzzles), "right": int(right)}
        for low, high, puzzles, right in rows
    ]


def _card(path: Path) -> str:
    """The text of a model's card; without it, a warning, as its model works all the same."""
    file = path.with_suffix(".md")
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        warnings.warn(
            f"There is no {file}: what was measured of the model {path.stem!r} is not known. "
            f"{_repair(file)}",
            stacklevel=1,
        )
        return ""


def _repair(path: Path) -> str:
    """How to get a good one in place of a file of the package."""
    checkout = (Path(__file__).parents[1] / ".git").exists()
    repair = (
        f"git checkout -- {path}"
        if checkout
        else "pip install --force-reinstall --no-deps attractor-models"
    )
    return f"This file came with the package: `{repair}` brings it back."


@contextlib.contextmanager
def repairing(path: Path) -> Iterator[None]:
    """Add to an error about a file of the package how to get a good one.

    Raises:
        CheckpointError: The code in the context raised one.
    """
    try:
        yield
    except CheckpointError as error:
        if not holds(path) or isinstance(error, NewerFormat):
            raise
        raise CheckpointError(f"{error} {_repair(path)}") from error
