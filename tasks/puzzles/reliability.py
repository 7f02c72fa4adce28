"""How often held-out puzzles were right whose solve ended with a residual like that of an answer.

The counts of a model of the package stand in its card, those of a run in the `result.json` beside
its checkpoint. They were made with the solver of the training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import shipped
from tasks.output import wilson
from tasks.runs import RESULT


@dataclass(slots=True)
class Band:
    """The held-out puzzles whose solve ended with a residual in a range.

    Attributes:
        low: Lower end.
        high: Upper end, which is not in the range.
        puzzles: Held-out puzzles whose residual lies in it.
        right: Those of them that were right in every cell.
    """

    low: float
    high: float
    puzzles: int
    right: int

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of 95 % for the probability that such an answer is right (Wilson)."""
        return wilson(self.right / self.puzzles if self.puzzles else 0.0, self.puzzles)

    def sentence(self, residual: float, noun: str) -> str:
        """What follows for an answer with such a residual."""
        count = f"{self.right} were" if self.right < self.puzzles else "all were"
        if self.right == 0:
            count = "none was"
        low, high = (100 * end for end in self.interval)
        plural = "" if self.puzzles == 1 else "s"
        return (
            f"residual {residual:.1e}: of {self.puzzles} held-out {noun}{plural} with such a "
            f"residual ({self.low:.0e} to {self.high:.0e}) {count} right "
            f"(95 % interval: {low:.1f} to {high:.1f} %)"
        )


def bands(path: Path) -> list[Band]:
    """The counts of a checkpoint by ascending residual; none where nobody has counted."""
    if shipped.holds(path):
        return [Band(**row) for row in shipped.reliability(path)]  # type: ignore[arg-type]
    return _evaluated(path.parent / RESULT)


def band_of(known: Iterable[Band], residual: float | None) -> Band | None:
    """The band of a residual; None if no held-out puzzle had such a one."""
    if residual is None or not math.isfinite(residual):
        return None
    return next((b for b in known if b.low <= residual < b.high and b.puzzles), None)


def _evaluated(path: Path) -> list[Band]:
    """The counts of a run's evaluation; none if there is no such file."""
    try:
        figures = json.loads(path.read_text())["eval"]
        known = figures.get("trained_size", True)
        return [_read(row) for row in figures["accuracy_by_residual"]] if known else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # it says nothing about how far to trust an answer


def _read(row: dict[str, Any]) -> Band:
    low, high = map(float, row["residual"].split(" to "))
    puzzles = int(row["puzzles"])
    return Band(low, high, puzzles, round(row["exact_accuracy"] * puzzles))
