"""The log of a run: rows of averaged metrics, the best validation so far, and warnings."""

import math
import warnings
from collections.abc import Callable

from tasks.reports.logger import means
from tasks.training.monitor import ConvergenceMonitor

LOG_EVERY = 10  # optimiser steps between rows


class History:
    """The rows of a run's log, and the metrics of the last steps, of which a row has the mean."""

    def __init__(self, score: Callable[[dict[str, float]], float], monitor: ConvergenceMonitor):
        self.score, self.monitor = score, monitor
        self.rows: list[dict[str, float]] = []
        self.window: list[dict[str, float]] = []

    def restore(self, rows: list[dict[str, float]], window: list[dict[str, float]]) -> None:
        """Go on from the rows and the metrics of the last steps, as a checkpoint has them.

        Raises:
            ArithmeticError, LookupError, TypeError, ValueError: They cannot be those of a run.
        """
        self.rows, self.window = rows, window
        means(window)  # as the next row will need
        if self.last_validation:
            self.is_best(self.last_validation)  # reads all of them
        for row in rows:
            if not 0 <= row["step"] < 2**63:
                raise ValueError(f"a row of the log has the step {row['step']!r:.40}")
            self.monitor.read(row)  # what it warned of before is not said again

    def add(self, metrics: dict[str, float], step: int, seconds: float) -> dict[str, float]:
        """Take the metrics of a step, and make a row of the last steps when it is time.

        A single step would mislead: samples that entered the batch together have had equally many
        segments, on which their loss depends, so that every tenth loss alone would show a beat.
        So a row at a validation, too, has the mean of as many steps as any other.

        Returns:
            The mean of the last steps and the validation, which is a row now if `is_row` says so.
        """
        validation = _validation(metrics)
        training = {name: value for name, value in metrics.items() if name not in validation}
        self.window = [*self.window, training][-LOG_EVERY:]
        row = {"step": step, "minutes": seconds / 60, **means(self.window), **validation}
        last = self.rows[-1]["step"] if self.rows else -LOG_EVERY
        if step - last >= LOG_EVERY or validation:
            self.rows.append(row)
            if (warning := self.monitor.read(row)) is not None:
                warnings.warn(warning, stacklevel=2)
        return row

    def is_row(self, step: int) -> bool:
        """Whether the log has a row for this step."""
        return bool(self.rows) and self.rows[-1]["step"] == step

    def is_best(self, validation: dict[str, float]) -> bool:
        """Whether a validation has a higher score than all in the log."""
        before = [self.score(row) for row in self.rows if _validation(row)]
        return self.score(validation) > max(before, default=-math.inf)

    @property
    def last_validation(self) -> dict[str, float]:
        """The metrics of the last validation in the log; none before the first."""
        return next(filter(None, map(_validation, reversed(self.rows))), {})


def _validation(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith("test_")}
