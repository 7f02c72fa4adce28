"""What the pages cannot hold themselves: measured results, which may not be there yet."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
SERVED = (".png", ".gif", ".svg", ".json")
# A line `<!-- results: peers -->` stands for results/bench/peers/table.md.
MARK = re.compile(r"^<!-- results: (\w+) -->$", re.MULTILINE)
PICTURE = "picture.png"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put measured tables where a page asks for them, and lead its links to results there.

    A page links to a result as it lies in the repository, outside `docs/`. The site has the
    results within its root, one level lower.
    """
    up = "../" * page.file.src_uri.count("/")
    text = markdown.replace(f"](../{up}results/", f"]({up}results/")
    return MARK.sub(lambda match: included(match[1], RESULTS / "bench"), text)


def on_files(files: Files, config: Any) -> Files:
    """Serve pictures of results, and the JSON files that pages link to."""
    for path in sorted(RESULTS.rglob("*")):
        if path.suffix in SERVED:
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
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
