"""What the pages cannot hold themselves: measured results, and what lies beside `docs/`."""

import re
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
SERVED = (".png", ".gif", ".svg", ".json")
# A line `<!-- results: peers -->` stands for results/bench/peers/table.md.
MARK = re.compile(r"^<!-- results: (\w+) -->$", re.MULTILINE)
CITATION = "<!-- citation -->"
PICTURE = "picture.png"
# Cards of models, by their addresses on the site, which are those in the repository.
CARDS = {path.relative_to(ROOT).as_posix(): path for path in ROOT.glob("tasks/*/weights/*.md")}
# Pages of the repository's root that the site has too.
BESIDE = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_config(config: Any) -> Any:
    """List the pages from beside `docs/`, and name the version."""
    version = re.search(r'"(.+)"', (ROOT / "solvers" / "version.py").read_text().split("__ = ")[1])
    assert version is not None
    config.copyright = f"Attractor Models {version[1]}, under the MIT licence"
    for entry in config.nav:
        if "Project" in entry:
            entry["Project"] += list(BESIDE)
        if "Attractor Models" in entry:
            entry["Attractor Models"].append({"Models of the package": list(CARDS)})
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put measured tables where a page asks for them, and lead its links to results there.

    A page links to a result, or to the card of a model, as it lies in the repository, outside
    `docs/`. The site has them within its root, one level lower.
    """
    up = "../" * page.file.src_uri.count("/")
    text = markdown.replace(f"](../{up}results/", f"]({up}results/")
    text = re.sub(rf"\]\(\.\./{re.escape(up)}(tasks/\w+/weights/)", rf"]({up}\1", text)
    if CITATION in text:
        text = text.replace(CITATION, bibtex((ROOT / "CITATION.cff").read_text()))
    return MARK.sub(lambda match: included(match[1], RESULTS / "bench"), text)


def on_files(files: Files, config: Any) -> Files:
    """Serve pictures and JSON files of results, cards of models, and pages from beside."""
    for path in sorted(RESULTS.rglob("*")):
        if path.suffix in SERVED:
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    for uri, path in CARDS.items():
        files.append(File.generated(config, uri, content=path.read_text()))
    for uri, name in BESIDE.items():
        text = (ROOT / name).read_text().replace("](docs/", "](")
        files.append(File.generated(config, uri, content=text))
    return files


def included(name: str, folder: Path) -> str:
    """The table of a benchmark, its headings two levels down, and its picture.

    Where it has not been measured: how to do so.
    """
    path = folder / name / "table.md"
    if not path.exists():
        return f"Not measured in this copy: `make bench` writes `results/bench/{name}/table.md`."
    text = re.sub(r"^(#+) ", r"##\1 ", path.read_text(), flags=re.MULTILINE)
    if (path.parent / PICTURE).exists() and PICTURE not in text:
        text += f"\n![The tables above as a picture]({PICTURE})\n"
    return text.replace(f"]({PICTURE})", f"](results/bench/{name}/{PICTURE})")


def bibtex(citation: str) -> str:
    """The entries of a citation file, of the software and of what it refers to."""
    software = yaml.safe_load(citation)
    entries = [entry("software", "attractor-models", software, url=software["repository-code"])]
    for number, paper in enumerate(software["references"], 1):
        journal = paper["identifiers"][0]["value"]
        key = f"attractor-paper-{number}" if number > 1 else "attractor-paper"
        entries.append(entry("article", key, paper, url=paper["url"], journal=journal))
    return "```bibtex\n" + "\n\n".join(entries) + "\n```"


def entry(kind: str, key: str, about: dict[str, Any], **fields: str) -> str:
    """One entry; names are in double braces, since they are not to be taken apart."""
    authors = " and ".join(f"{{{author['name']}}}" for author in about["authors"])
    rows = {"title": f"{{{about['title']}}}", "author": authors, **fields}
    if "version" in about:
        rows["version"] = str(about["version"])
    lines = [f"  {name} = {{{value}}}," for name, value in rows.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
