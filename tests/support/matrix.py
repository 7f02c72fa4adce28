"""Run tests with the kernels of other processors: `make test-matrix`.

    python tests/support/matrix.py [--threads 1,2] [--kernels default,avx2,native] [pytest options]

Kernels of other widths round differently, and so do sums that threads share: a test that compares
near the rounding of its dtype passes on one machine and fails on the next. Each run lowers what
torch, oneDNN and MKL use of the processor (MKL minds it on Intel's alone), and the table at the
end says what failed where.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS = {
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "native": {},
}
OUTCOME = re.compile(r"(\d+) (passed|failed|error)")


def run(kernels: str, threads: int, arguments: list[str]) -> tuple[str, list[str]]:
    """One run; returns its row of the table and the tests that failed."""
    counts = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=ROOT, env=os.environ | KERNELS[kernels] | counts, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    minutes = (time.monotonic() - began) / 60
    lines = ended.stdout.splitlines()
    found = {kind: int(count) for count, kind in OUTCOME.findall(lines[-1] if lines else "")}
    broken = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if ended.returncode and not broken:  # not even collected
        broken = lines[-5:]
    passed, failed = found.get("passed", 0), found.get("failed", 0) + found.get("error", 0)
    return f"{kernels:8} {threads:7} {passed:7} {failed:7} {minutes:7.1f}", broken


def main() -> int:
    """Run all, print the table, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", default=",".join(KERNELS), help="divided by commas")
    parser.add_argument("--threads", default="1,2", help="likewise")
    options, arguments = parser.parse_known_args()
    rows, failures = [], dict[str, list[str]]()
    for threads in map(int, options.threads.split(",")):
        for kernels in options.kernels.split(","):
            row, broken = run(kernels, threads, arguments)
            print(row, *broken, sep="\n  ", flush=True)
            rows.append(row)
            for line in broken:
                failures.setdefault(line, []).append(f"{kernels}/{threads}")
    print("kernels  threads  passed  failed minutes", *rows, sep="\n")
    for line, where in failures.items():
        print(", ".join(where), line, sep=": ")
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
