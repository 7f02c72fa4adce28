"""What is known of a model: its name, its model card, and how often it was right by residual."""

from pathlib import Path
from typing import Any

from tasks import shipped
from tasks.checkpoints.checkpoint import FOLDER, NAME
from tasks.puzzles.reliability import bands
from tasks.runs import WEIGHTS, last_score


def describe(path: Path, noun: str) -> dict[str, Any]:
    """The fields `name`, `card` and `reliability` of `schemas.About`.

    A model of the package has a card. Of a run, the last score of its training is known, and what
    its evaluation has left beside its weights.

    Args:
        path: Of the checkpoint.
        noun: What one puzzle is called.
    """
    reliability = bands(path)
    if shipped.holds(path):
        return {
            "name": path.stem,
            "card": shipped.card(path),
            "reliability": reliability,
        }
    score = last_score(path)
    card = {} if score is None else {"Scores": f"{score:.1%} of held-out {noun}s exactly right"}
    # Whoever asks need not know where on this machine the file is.
    name = path.parent.name if path.name in (NAME, FOLDER, WEIGHTS) else path.stem
    return {"name": name, "card": card, "reliability": reliability}
