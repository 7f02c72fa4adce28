"""What the repository promises about itself."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

import implicit
import solvers

ROOT = Path(__file__).parents[1]
PACKAGES = ["solvers", "implicit", "models", "tasks"]
FOLDERS = [*PACKAGES, "tests", "benchmarks"]
FILES = sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))
TASKS = sorted(f"tasks.{path.parent.name}" for path in (ROOT / "tasks").glob("*/__main__.py"))
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]


def table(page: str, heading: str) -> list[str]:
    """First column of the table under a heading of a page."""
    section = (ROOT / "docs" / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_every_solver_is_listed() -> None:
    assert table("solvers.md", "All solvers") == solvers.names()


def test_every_backward_mode_is_listed() -> None:
    assert table("gradients.md", "All modes") == implicit.backward_modes()


def test_readme_example_runs() -> None:
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    exec(compile(code, "README.md", "exec"), {})


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1000
    assert (ROOT / "docs" / "solve.gif").stat().st_size <= 10**6


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_named_for_what_they_hold(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    assert not {"util", "utils", "helper", "helpers", "misc"} & set(parts)
    assert len(path.read_text().splitlines()) <= 400


def test_results_have_a_row_for_each_folder() -> None:
    results = ROOT / "results"
    text = (results / "README.md").read_text()
    rows = re.findall(r"^\| \[`([\w/-]+)`\]\(\1\) \|", text, re.MULTILINE)
    files = [path for path in results.rglob("*") if path.is_file()]
    folders = {path.parent.relative_to(results).as_posix() for path in files} - {"."}
    assert sorted(rows) == sorted(folders)


def comparisons() -> dict[str, str]:
    """The folders that `compare` wrote, and its commands."""
    text = (ROOT / "results" / "README.md").read_text()
    rows = r"^\| \[`([\w/-]+)`\]\(\1\) \| `(python -m tasks\.\w+ compare[^`]*)`"
    return dict(re.findall(rows, text, re.MULTILINE))


@pytest.mark.parametrize(("folder", "command"), comparisons().items(), ids=comparisons())
def test_comparisons_say_how_they_were_configured(folder: str, command: str) -> None:
    """New ones by themselves; what older ones lack was reconstructed, and is marked as such."""
    found = json.loads((ROOT / "results" / folder / "result.json").read_text())
    rows = found["rows"]
    if {"commit", "rates"} <= found.keys():
        assert "config" in found or all("config" in row for row in rows)
        return
    later = found["reconstructed"]
    assert re.fullmatch("[0-9a-f]{7}", later["from"])
    assert later["command"] == command
    assert "commit of the run" in later["unknown"]
    assert ("rates that were searched" in later["unknown"]) == (later["rates"] is None)
    assert set(later["configs"]) == {row["model"] for row in rows}
    for row in rows:
        config = later["config"] | later["configs"][row["model"]]
        assert config["steps"] or config["minutes"]
        assert config["width"] == row.get("width", config["width"])
        assert config["learning_rate"] == row.get("rate", config["learning_rate"])
        assert later["rates"] is None or config["learning_rate"] in later["rates"]


def test_wheel_holds_the_four_packages_only() -> None:
    found = set(find_packages(str(ROOT), **TOOLS["setuptools"]["packages"]["find"]))
    assert {name.split(".")[0] for name in found} == set(PACKAGES)
    assert {"tasks.serving", *TASKS} <= found


def private_names(tree: ast.Module) -> set[str]:
    """Of torch, as a file imports them or reads them from what it has imported."""
    private = re.compile(r"_[a-zA-Z]\w*")
    roots, found = {"torch"}, set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "torch":
            roots |= {alias.asname or alias.name for alias in node.names}
            found |= {*str(node.module).split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            aliases = [alias for alias in node.names if alias.name.split(".")[0] == "torch"]
            roots |= {alias.asname for alias in aliases if alias.asname}
            found |= {part for alias in aliases for part in alias.name.split(".")}
    for node in ast.walk(tree):
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in roots:
            found |= set(names)
    return {name for name in found if private.fullmatch(name)}


@pytest.mark.parametrize("package", PACKAGES)
def test_private_names_of_torch_are_in_one_file(package: str) -> None:
    kept = ROOT / "solvers" / "torch_internals.py"
    assert private_names(ast.parse(kept.read_text()))
    for path in set((ROOT / package).rglob("*.py")) - {kept}:
        assert not private_names(ast.parse(path.read_text())), path


def test_imports_keep_the_contracts() -> None:
    command = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    run = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_contracts_name_every_task() -> None:
    contracts = {contract["type"]: contract for contract in TOOLS["importlinter"]["contracts"]}
    assert sorted(contracts["independence"]["modules"]) == TASKS


def test_torch_is_pinned() -> None:
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()
