"""What an editor and a type checker see of the public functions."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from implicit import fixed_point
from solvers import solve

ROOT = Path(__file__).parents[1]
SNIPPET = """
import torch
import solvers
from implicit import fixed_point

y0 = torch.zeros(1, 2)
solvers.solve(f=torch.cos, y0=y0, solver="picard").describe()
fixed_point(torch.add, y0, y0, backward="phantom").describe()
solvers.solve(torch.cos, y0, solvr="picard")
fixed_point(torch.cos, y0, solvr="picard")
fixed_point(torch.cos, y0, max_steps="many")
fixed_point(torch.cos, y0).converge
"""


@pytest.mark.parametrize("function", [solve, fixed_point])
def test_help_shows_every_parameter(function: Callable[..., Any]) -> None:
    names = list(inspect.signature(function).parameters)
    assert names[:4] == ["f", "y0", "args", "solver"]
    assert "max_steps" in names


def test_a_type_checker_refuses_wrong_options(tmp_path: Path) -> None:
    pytest.importorskip("pyright", reason="a tool of `make lint`")
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET)
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(snippet)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stdout.count('No parameter named "solvr"') == 2, ended.stdout
    assert '"max_steps" of type "int"' in ended.stdout
    assert 'Cannot access attribute "converge"' in ended.stdout
    assert "4 errors" in ended.stdout, ended.stdout
