"""What is known of a model: its name, its model card, and how often it was right by residual."""

import json
from pathlib import Path
from typing import Any

from tasks import shipped
from tasks.checkpoints.checkpoint import FOLDER, NAME
from tasks.runs import RESULT, WEIGHTS, last_score


def describe(path: Path, noun: str) -> dict[str, Any]:
    """The fields `name`, `card` and `reliability` of `schemas.About`.

    A model of the package has a card. Of a run, the last score of its training is known, and what
    its evaluation has left beside its weights.

    Args:
        path: Of the checkpoint.
        noun: What one puzzle is called.
    """
    if shipped.holds(path):
        return {
            "name": path.stem,
            "card": shipped.card(path),
            "reliability": shipped.reliability(path),
        }
    score = last_score(path)
    card = {} if score is None else {"Scores": f"{score:.1%} of held-out {noun}s exactly right"}
    # Whoever asks need not know where on this machine the file is.
    name = path.parent.name if path.name in (NAME, FOLDER, WEIGHTS) else path.stem
    return {"name": name, "card": card, "reliability": _evaluated(path.parent / RESULT)}


def _evaluated(path: Path) -> list[dict[str, float]]:
    """The counts by residual of a run's evaluation; none if there is no such file."""
    try:
        rows = json.loads(path.read_text())["eval"]["accuracy_by_residual"]
        return [_band(row["residual"], row["puzzles"], row["exact_accuracy"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # it says nothing about how far to trust an answer


def _band(residual: str, puzzles: int, share: float) -> dict[str, float]:
    low, high = map(float, residual.split(" to "))
    return {"low": low, "high": high, "puzzles": puzzles, "right": round(share * puzzles)}
