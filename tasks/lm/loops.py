"""Loss against the number of test-time loops: does a model stand more than it was trained with?

A looped model that was trained with so many loops may get worse with more of them. A solve to a
fixed point should not, since further updates stay where they are. So the solve goes on here up to
its budget, whatever its tolerance.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from implicit import FixedPointLayer
from tasks.distributed import ALONE, Group
from tasks.lm.config import LanguageConfig
from tasks.lm.data import Corpus, measure
from tasks.output import SILENT, Progress

LOOPS = (0, 1, 2, 4, 8, 16, 32, 64)


def by_loops(
    model: Any, corpus: Corpus, config: LanguageConfig, loops: Sequence[int] = LOOPS,
    limit: int | None = None, group: Group = ALONE, progress: Progress = SILENT,
) -> dict[str, Any]:  # fmt: skip
    """Held-out loss after each number of loops, or of solver updates.

    Args:
        model: One that is looped or solved.
        corpus: Its text.
        config: Its run.
        loops: How many.
        limit: Only so many held-out tokens.
        group: Processes that share them.
        progress: Told of each batch.

    Returns:
        `rows` of `max_steps` and the figures of `data.measure`; `own`, the number of loops of
        the model itself (of a solve, where it converged: the mean number of updates), and its
        loss, `own_loss`; and `rise`, the largest loss after more loops than that over `own_loss`,
        less 1. It is negative where more loops are better throughout.

    Raises:
        ValueError: The model has neither loops nor a solve.
    """
    if config.model.name == "transformer":
        raise ValueError("A transformer has no loops to vary: name models that loop or are solved.")
    shared: dict[str, Any] = {"limit": limit, "group": group, "progress": progress}
    converged = measure(model, corpus, config, **shared)
    own = converged.get("mean_steps", getattr(model, "loops", None))
    with _solving_on(model.solving):
        rows = [
            {"max_steps": count, **measure(model, corpus, config, max_steps=count, **shared)}
            for count in loops
        ]
    beyond = [row["loss"] for row in rows if row["max_steps"] > own]
    rise = max(beyond) / converged["loss"] - 1 if beyond else 0.0
    return {"rows": rows, "own": own, "own_loss": converged["loss"], "rise": rise}


@contextlib.contextmanager
def _solving_on(layer: FixedPointLayer | None) -> Iterator[None]:
    """Solve up to the budget, with a tolerance that no residual meets."""
    if layer is None:
        yield
        return
    solver = layer.solver
    layer.solver = dataclasses.replace(solver, rtol=torch.finfo(torch.float32).tiny)
    try:
        yield
    finally:
        layer.solver = solver
