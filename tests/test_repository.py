"""What the repository promises about itself."""

import re
from pathlib import Path

import pytest
from setuptools import find_packages

import implicit
import solvers

ROOT = Path(__file__).parents[1]
PACKAGES = ["solvers", "implicit", "models", "tasks"]
FILES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def table(heading: str) -> list[str]:
    """First column of the README's table under a heading."""
    section = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_readme_lists_every_solver() -> None:
    assert table("Solvers") == [n for n in solvers.names() if not n.startswith("test_")]


def test_readme_lists_every_backward_mode() -> None:
    assert table("Backward modes") == implicit.backward_modes()


def test_readme_example_runs() -> None:
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_named_for_what_they_hold(path: Path) -> None:
    assert path.name not in {"utils.py", "helpers.py", "misc.py"}
    assert len(path.read_text().splitlines()) <= 400


def test_wheel_holds_the_four_packages_only() -> None:
    found = find_packages(str(ROOT), include=[f"{name}*" for name in PACKAGES])
    assert {name.split(".")[0] for name in found} == set(PACKAGES)


def test_torch_is_pinned() -> None:
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()
