"""All faults at once: slow, so that a change of files, runs or the service calls it by hand."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.long  # ten minutes
def test_no_fault_goes_wrong() -> None:
    found = subprocess.run(
        ["env", f"PYTHON={sys.executable}", str(Path(__file__).with_name("run"))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-2000:]
