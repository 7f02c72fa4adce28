"""What the documentation promises: its code runs, its tables are complete, its site builds."""

import importlib
import importlib.util
import inspect
import math
import os
import pydoc
import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import implicit
import models
import solvers
from implicit.diagnostics import plots
from implicit.registry import MODES
from solvers import Result, adapters
from solvers.registry import LINEAR, SOLVERS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WITH_CODE = [page for page in (*PAGES, ROOT / "README.md") if "```python\n" in page.read_text()]
# A Python block; a text block right after it is what it prints.
BLOCK = re.compile(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*[A-Za-z_])")
EXTERNAL = re.compile(r"<(?:script|img|iframe)[^>]+src=\"?https?:|<link[^>]+stylesheet[^>]+https?:")


def name_of(page: Path) -> str:
    return page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT).with_suffix("").as_posix()


def table(page: str, heading: str) -> list[str]:
    """First column of the table under a heading."""
    text = (DOCS / f"{page}.md").read_text()
    section = re.split(r"\n#+ ", text.split(f"# {heading}\n")[1])[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def agree(printed: str, shown: str) -> bool:
    """The same words, and the same numbers within a tenth: machines round differently."""
    numbers = [[float(n) for n in NUMBER.findall(text)] for text in (printed, shown)]
    words = [NUMBER.sub("#", text).split() for text in (printed, shown)]
    near = (math.isclose(a, b, rel_tol=0.1) for a, b in zip(*numbers, strict=False))
    return words[0] == words[1] and all(near)


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that a page registers are gone afterwards."""
    for registry in (SOLVERS, LINEAR, MODES):
        monkeypatch.setattr(registry, "entries", dict(registry.entries))


@pytest.mark.parametrize(
    "page",
    # The page on extending runs whole conformance suites.
    [pytest.param(p, id=name_of(p), marks=[pytest.mark.slow] * (p.stem == "extending"))
     for p in WITH_CODE],
)  # fmt: skip
@pytest.mark.usefixtures("registries")
# Dynamo looks at `.grad` of every tensor that it meets.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_code_runs_and_prints_what_is_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Dynamo looks up in its module what a function reads.
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    space = vars(module)
    text = page.read_text()
    for block in BLOCK.finditer(text):
        # Line numbers as in the page.
        code = "\n" * (text[: block.start()].count("\n") + 1) + block[1]
        out = StringIO()
        with redirect_stdout(out):
            exec(compile(code, str(page), "exec"), space)
        if block[2] is not None:
            assert agree(out.getvalue(), block[2]), out.getvalue()


def test_numbers_may_differ_by_a_tenth_and_words_not_at_all() -> None:
    assert agree("picard 105 1.0e-06", "picard  100 1.1e-06")
    assert not agree("picard 120", "picard 100")
    assert not agree("picard 100", "anderson 100")
    assert not agree("1 2", "1")


@pytest.mark.parametrize(
    ("page", "heading", "names"),
    [
        ("solvers", "All solvers", solvers.names()),
        ("solvers", "Linear solvers", solvers.linear_names()),
        ("gradients", "All modes", implicit.backward_modes()),
        ("gradients", "Which mode under which transform", implicit.backward_modes()),
        ("solution", "Result codes", [code.name for code in Result]),
    ],
)
def test_tables_equal_the_registries(page: str, heading: str, names: list[str]) -> None:
    assert table(page, heading) == names


def public_names() -> list[str]:
    modules: list[ModuleType] = [solvers, adapters, implicit]
    names = [f"{module.__name__}.{name}" for module in modules for name in module.__all__]
    drawings = [n for n in vars(plots) if n.startswith("plot_") or n.endswith("_figure")]
    names += [f"implicit.diagnostics.plots.{name}" for name in drawings]
    names += [f"tasks.{task}.load" for task in ("sudoku", "maze", "lm")]
    return [*names, *(f"models.{name}" for name in models.__all__)]


@pytest.mark.parametrize("name", public_names())
def test_reference_has_every_public_name(name: str) -> None:
    package = name.partition(".")[0]
    text = (DOCS / f"reference/{package}.md").read_text()
    # Each entry has a page of its own, under the name that users write.
    listed = [entry.name for entry in load(DOCS / "reference_pages.py").entries(package)]
    assert name in listed or re.search(rf"`@?{re.escape(name)}\W", text)


SECTION = re.compile(r"\n(?:Args|Attributes|Returns|Raises|References|Example|Yields):\n")
# Blocks of code, not formulas.
CODE = ["solvers.Run", "solvers.registry.Registry", "implicit.contrib.DeepinvStep"]


def formulas_of(name: str) -> list[str]:
    """The indented blocks in the text of a docstring, up to its first section."""
    doc = inspect.getdoc(pydoc.locate(name)) or ""
    return re.findall(r"\n\n((?:    .+(?:\n|$))+)", SECTION.split(doc)[0])


def test_every_formula_of_a_public_docstring_is_typeset() -> None:
    """And every entry of the table is a formula that some docstring still has."""
    known = load(DOCS / "docstring_formulas.py")
    reference = load(DOCS / "reference_pages.py")
    entries = [e for package in reference.PACKAGES for e in reference.entries(package)]
    found = [
        known.joined(formula)
        for e in entries
        if e.path not in CODE
        for formula in formulas_of(e.path)
    ]
    assert set(found) == set(known.known())


def test_a_formula_is_replaced_however_it_is_highlighted() -> None:
    known = load(DOCS / "docstring_formulas.py")
    text = "<span>y</span> &lt;- damping * y + (1 - damping) * f(y)\n"
    block = f'<div class="highlight"><pre><span></span><code>{text}</code></pre></div>'
    typeset = r'<div class="arithmatex">\[y \leftarrow \mathrm{damping} \cdot y + (1 - '
    for html in (block, f"<pre><code>{text}</code></pre>"):
        assert known.replaced(f"<p>a</p>{html}<p>b</p>").startswith(f"<p>a</p>{typeset}")
        assert "<pre" not in known.replaced(html)
    code = block.replace("damping", "other")
    assert known.replaced(code) == code


def test_pages_of_the_reference_have_names_of_their_own() -> None:
    reference = load(DOCS / "reference_pages.py")
    entries = [entry for package in reference.PACKAGES for entry in reference.entries(package)]
    # `solvers.trace` and `solvers.Trace` are one file where upper and lower case are the same.
    assert len({entry.file.lower() for entry in entries}) == len(entries)
    page = reference.with_tables(
        "# A\n\n::: solvers.solve\n    options: {}\n\nB\n", "solvers", str.upper
    )
    assert page == (
        "# A\n\n| Name | What it is |\n| --- | --- |\n"
        f"| [`{entries[0].name}`]({entries[0].file}) | {entries[0].path.upper()} |\n\nB\n"
    )


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"([\w/]+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == [name_of(page) for page in PAGES]


def test_measured_tables_may_be_absent(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site is built by make docs, with its own extra")
    hooks = load(DOCS / "hooks.py")
    assert "make bench" in hooks.included("peers", tmp_path)
    folder = tmp_path / "peers"
    folder.mkdir()
    (folder / "table.md").write_text("# Peers\n")
    assert hooks.included("peers", tmp_path) == "### Peers\n"
    (folder / "picture.png").touch()
    shown = "](results/bench/peers/picture.png)"
    assert shown in hooks.included("peers", tmp_path)
    (folder / "table.md").write_text("# Peers\n\n![Time](picture.png)\n")
    assert hooks.included("peers", tmp_path) == f"### Peers\n\n![Time{shown}\n"


def test_citations_are_those_of_the_file() -> None:
    pytest.importorskip("mkdocs", reason="the site is built by make docs, with its own extra")
    text = (ROOT / "CITATION.cff").read_text()
    entries = load(DOCS / "hooks.py").bibtex(text)
    assert entries.count("@software{") == entries.count("@article{") == 1
    for field in re.findall(
        r'^ *(?:- )?(?:title|name|version|url): "?(.+?)"?$', text, re.MULTILINE
    ):
        assert field in entries


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    pages = [
        *PAGES,
        *ROOT.glob("*.md"),
        *(ROOT / "tasks").rglob("*.md"),
        ROOT / "results/README.md",
    ]
    for page in pages:
        for link in re.findall(
            r"\]\(([^():]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        ):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), (page, link)
            assert not anchor or anchor in anchors(target), (page, link)


def test_the_picture_of_the_decision_is_what_the_script_draws() -> None:
    script = load(DOCS / "decision.py")
    assert script.drawing() == script.TARGET.read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", script.drawing())
    names = [*solvers.names(), *implicit.backward_modes()]
    for _, answer in (*script.SOLVER, *script.GRADIENT):
        first = answer.split("|")[0]
        assert first == "solvers.solve" or set(first.split(", ")) <= set(names)


def test_every_example_has_its_row() -> None:
    page = (DOCS / "examples.md").read_text()
    for path in (ROOT / "examples").glob("*.py"):
        assert f"| `{path.stem}` |" in page


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look up their types
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_site_builds_without_a_warning_and_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "the site is built by make docs, with its own extra"
    pytest.importorskip("mkdocstrings_handlers.python", reason=reason)
    pytest.importorskip("material", reason=reason)
    pytest.importorskip("latex2mathml", reason=reason)
    build = pytest.importorskip("mkdocs.commands.build", reason=reason)
    config = importlib.import_module("mkdocs.config")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    # tests/test_gallery.py runs its pages.
    monkeypatch.setenv("GALLERY", "source")
    built = config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    built.plugins.on_startup(command="build", dirty=False)
    build.build(built)
    for path in tmp_path.rglob("*.html"):
        # By this mark Material's script finds the repository, and asks GitHub for its stars.
        assert 'data-md-component="source"' not in path.read_text()
    for page in PAGES:
        text = (tmp_path / f"{name_of(page)}.html").read_text()
        assert not EXTERNAL.search(text)
        # An asterisk in y* that Markdown took for emphasis.
        assert not re.search(r"<em>[ ,)]", text)
        # Formulas are typeset, and by no script; behind the sign of a price is a digit.
        assert "arithmatex" not in text
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        assert ("<math" in text) == bool(re.search(r"\$[^\s\d]", prose))
    for name in ("solvers", "solvers.Anderson"):
        assert "Anderson acceleration" in (tmp_path / f"reference/{name}.html").read_text()
    reference = load(DOCS / "reference_pages.py")
    for entry in (entry for package in reference.PACKAGES for entry in reference.entries(package)):
        page = (tmp_path / f"reference/{entry.file.removesuffix('.md')}.html").read_text()
        assert entry.name in page
        assert not EXTERNAL.search(page)
        assert "arithmatex" not in page
        assert entry.name != "implicit.Exact" or "<math" in page
        # A text of several lines is one value.
        for part in page.split('doc-section-title">Returns:')[1:]:
            assert part.split("</table>")[0].count("<tr") == 2
    for path in (ROOT / "tasks").glob("*/help/*.txt"):
        page = (tmp_path / f"commands/{path.parent.parent.name}.html").read_text()
        assert path.stem == "usage" or f'<h2 id="{path.stem}">' in page
    for path in (DOCS / "gallery").glob("*.py"):
        assert f"{path.stem}.ipynb" in (tmp_path / f"gallery/{path.stem}.html").read_text()
        assert (tmp_path / f"gallery/{path.stem}.ipynb").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("marker", "check"),
    [
        ("class HeavyBall(", "import implicit\nsolvers.testing.check(HeavyBall)\n"
         "implicit.testing.check('exact', solvers=['heavy_ball'])\n"),
        ("class Richardson(", "implicit.testing.check(Richardson)\n"),
    ],
    ids=["solver", "mode"],
)  # fmt: skip
def test_what_the_page_on_extending_adds_passes_the_suite(
    marker: str, check: str, tmp_path: Path
) -> None:
    """Copied word by word into a module of its own, far from the checkout."""
    page = (DOCS / "extending.md").read_text()
    (code,) = (block[1] for block in BLOCK.finditer(page) if marker in block[1])
    (tmp_path / "mine.py").write_text(f"{code}\n\n{check}")
    run = subprocess.run(
        [sys.executable, "-W", "error", "mine.py"], cwd=tmp_path, capture_output=True, text=True,
        check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
