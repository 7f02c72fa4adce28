"""Commands that the processes of `torchrun` share, and what one process finds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (distributed.is_available() and distributed.is_gloo_available()), reason="no gloo"
    ),
]
ROOT = Path(__file__).parents[3]
SMALL = ["--limit", "8192"]


def run(folder: Path, processes: int, *arguments: str, code: int = 0) -> str:
    """Run a command of `tasks.lm` on so many processes, and return what it printed."""
    launcher = []
    if processes > 1:
        launcher = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
        ]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tasks.lm", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, cwd=folder, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def close(found: Any, wanted: Any) -> None:
    """The same values, but for the rounding of sums in another order."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            close(found[name], wanted[name])
    elif isinstance(wanted, list):
        for pair in zip(found, wanted, strict=True):
            close(*pair)
    else:
        assert found == (pytest.approx(wanted, rel=1e-4) if isinstance(wanted, float) else wanted)


@pytest.mark.parametrize(
    "command", ["eval", "internalise", pytest.param("loops", marks=pytest.mark.long)]
)
def test_two_processes_measure_what_one_does(command: str, tmp_path: Path) -> None:
    out = run(tmp_path, 2, command, *SMALL, "--json", "found.json")
    assert len(out.strip().splitlines()) == 1  # the result, of one process
    found = json.loads(out)
    close(found, json.loads(run(tmp_path, 1, command, *SMALL)))
    assert json.loads((tmp_path / "found.json").read_text()) == found


def test_a_comparison_trains_each_run_on_both_processes(tmp_path: Path) -> None:
    options = [
        "compare", "--preset", "tiny", "--models", "attractor", "transformer", "--ablations",
        "injection=concat", "--rates", "4e-3", "--seeds", "2", "--steps", "3", "--out", "runs",
    ]  # fmt: skip
    assert "transformer" in run(tmp_path, 2, *options)
    found = json.loads((tmp_path / "runs" / "table.json").read_text())
    models = {row["model"]: row["config"]["model"] for row in found["rows"]}
    assert set(models) == {"attractor", "transformer", "attractor-injection=concat"}
    assert models["attractor-injection=concat"]["injection"] == "concat"
    assert models["attractor"]["injection"] == "additive"
    assert all(row["seeds"] == 2 for row in found["rows"])
    # A finished run is not repeated, by one process neither.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/compare.json")}
    assert len(before) == 6
    run(tmp_path, 1, *options)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    error = run(tmp_path, 2, *options[:-1], "others", "--jobs", "2", code=1)
    assert "`torchrun` trains each run on all its 2 processes: drop `--jobs`, got 2." in error
