"""Fair timing: every candidate in every round, in changing order, and the median of rounds."""

import random
import statistics
import time
from collections.abc import Callable


def interleaved(
    candidates: dict[str, Callable[[], object]],
    rounds: int = 9,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds per call of each candidate, after one call to warm up.

    With `time.process_time` as the clock it is processor time, which other work on the machine
    disturbs less.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    for number in range(rounds):
        order = list(candidates)
        random.Random(number).shuffle(order)
        for name in order:
            began = clock()
            candidates[name]()
            times[name].append(clock() - began)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def show(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table for people."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print(f"\n{title}")
    for row in [header, *rows]:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
