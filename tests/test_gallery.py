"""Pages of the gallery keep a form, run without a warning, and end in a picture."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from parameters import long

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs" / "gallery"
PAGES = sorted(GALLERY.glob("*.py"))
# Pages that `make test-slow` runs; `make docs` runs all of them.
OFTEN = {"debugging", "own_gradient", "own_solver", "pagerank"}
# What an install without extras has, and what a page says to install for the rest.
CORE = {"matplotlib", "numpy", "scipy", "torch", "solvers", "implicit", "models"}
EXTRAS = {
    "transformers": "lm",
    "deepinv": "deepinv",
    "lightning": "integrations",
    "accelerate": "integrations",
    "tasks": "lm",
}
# What an import of it is to find, where that is something else.
INSTALLED = {"tasks": "tokenizers"}


def load(name: str) -> ModuleType:
    """A module of docs/, which are no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


notebooks = load("notebooks")


def imported(text: str) -> set[str]:
    """The packages that a page imports."""
    nodes = list(ast.walk(ast.parse(text)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def run(path: Path, out: Path, code: str = "") -> subprocess.CompletedProcess[str]:
    """As the build of the site does."""
    script = f"{code}\nimport runpy, sys\nsys.argv[1:] = {[str(path), str(out)]!r}\n"
    script += f"runpy.run_path({str(ROOT / 'docs/notebooks.py')!r}, run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", script], cwd=out, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_form(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 100
    cells = notebooks.cells_of(text)
    assert text.startswith("# %% [markdown]\n# # ")
    assert cells[0].is_text
    assert not cells[-1].is_text
    assert cells[-1].source.endswith("plt.show()")
    titles = [c.source for c in cells if c.is_text and re.search(r"^# ", c.source, re.MULTILINE)]
    assert titles == [cells[0].source]
    missing = imported(text) - CORE - sys.stdlib_module_names
    assert missing <= EXTRAS.keys()
    for package in missing:
        assert f"pip install -e '.[{EXTRAS[package]}]'" in text


def test_index_lists_every_page() -> None:
    rows = notebooks.LINK.findall((GALLERY / "index.md").read_text())
    assert sorted(rows) == [path.stem for path in PAGES]


def test_links_to_programs_lead_to_their_pages() -> None:
    text = "[a](gallery/heat.py) [b](../gallery/two_moons.py) [c](../examples/heat.py)"
    led = notebooks.FROM_OUTSIDE.sub(r"](\1.md)", text)
    assert led == "[a](gallery/heat.md) [b](../gallery/two_moons.md) [c](../examples/heat.py)"


def test_cells_know_their_lines() -> None:
    cells = notebooks.cells_of("# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\n\nx = 1\ny = 2\n")
    assert [(cell.source, cell.is_text, cell.line) for cell in cells] == [
        ("# Title\n\nText.", True, 2),
        ("x = 1\ny = 2", False, 8),
    ]


@pytest.mark.parametrize(
    "path",
    [long(path, unless=path.stem in OFTEN) for path in PAGES],
    ids=[p.stem for p in PAGES],
)
def test_runs_without_a_warning_and_ends_in_a_picture(path: Path, tmp_path: Path) -> None:
    for package in imported(path.read_text()) & EXTRAS.keys():
        wanted = INSTALLED.get(package, package)
        pytest.importorskip(wanted, reason=f"needs pip install -e '.[{EXTRAS[package]}]'")
    done = run(path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    notebook = json.loads((tmp_path / path.stem / f"{path.stem}.ipynb").read_text())
    *others, last = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert last[-1]["output_type"] == "display_data"
    assert any(output["output_type"] == "stream" for outputs in others for output in outputs)
    assert list((tmp_path / path.stem).glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in PAGES if imported(p.read_text()) & EXTRAS.keys()], ids=lambda p: p.stem
)
def test_missing_extra_is_named_without_a_traceback(path: Path, tmp_path: Path) -> None:
    (package,) = imported(path.read_text()) & EXTRAS.keys()
    done = run(path, tmp_path, f"import sys; sys.modules[{package!r}] = None")
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / path.stem / f"{path.stem}.md").read_text()
    needs = rf"This page needs {package}\b.*: pip install -e '\.\[{EXTRAS[package]}\]'"
    assert re.search(needs, page)
    assert ".png" not in page
