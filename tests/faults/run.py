"""Inject faults into files, runs and the service, and count what became of them.

    tests/faults/run [part of a name ...]

Exit status 1 if any went wrong.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import damaged_checkpoints
import damaged_files
import disturbed_runs
import hostile_clients
import torch
from cases import inject, report


def main(wanted: list[str]) -> int:
    """Inject all faults, or those whose name has one of these parts."""
    torch.set_num_threads(1)
    began, outcomes = time.monotonic(), []
    for module in (damaged_files, damaged_checkpoints, disturbed_runs, hostile_clients):
        for name, act in module.faults():
            if wanted and not any(part in name for part in wanted):
                continue
            folder = Path(tempfile.mkdtemp(prefix="fault-"))
            since = time.monotonic()
            try:
                outcomes.append(inject((name, act), folder))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            print(f"{time.monotonic() - since:6.2f} s  {outcomes[-1].kind:8}  {name}", flush=True)
    print(report(outcomes), f"\n{time.monotonic() - began:.0f} seconds")
    return int(any(outcome.kind == "wrong" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
