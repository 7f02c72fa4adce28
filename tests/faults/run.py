"""Inject faults into files, runs and the service, and count what became of them.

    tests/faults/run [part of a name ...]

Exit status 1 if any went wrong.
"""

import importlib
import multiprocessing
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from cases import CLEANUP, Outcome, inject, report

# Each line is for a process of its own: they take about as long.
TABLES = (
    ("damaged_files", "damaged_checkpoints", "hostile_clients"),
    ("disturbed_runs",),
)


def inject_all(tables: tuple[str, ...], wanted: list[str]) -> list[Outcome]:
    """Inject the faults of some tables, or those whose name has one of the wanted parts."""
    torch.set_num_threads(1)
    outcomes = []
    with CLEANUP:
        for name, act in (fault for t in tables for fault in importlib.import_module(t).faults()):
            if wanted and not any(part in name for part in wanted):
                continue
            folder, began = Path(tempfile.mkdtemp(prefix="fault-")), time.monotonic()
            outcomes.append(inject((name, act), folder))
            shutil.rmtree(folder, ignore_errors=True)
            seconds = time.monotonic() - began
            why = f": {outcomes[-1].detail}" if outcomes[-1].kind == "wrong" else ""
            print(f"{seconds:6.2f} s  {outcomes[-1].kind:8}  {name}{why}", flush=True)
    return outcomes


def main(wanted: list[str]) -> int:
    """Inject all faults, and print what became of them."""
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(TABLES), context) as pool:
        parts = list(pool.map(inject_all, TABLES, [wanted] * len(TABLES)))
    outcomes = [outcome for part in parts for outcome in part]
    print(report(outcomes))
    print(f"{time.monotonic() - began:.0f} seconds")
    return int(any(outcome.kind == "wrong" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
