"""What the pages cannot hold themselves: measured results, which may not be there yet."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
# A line `<!-- results: peers -->` stands for results/peers.md.
MARK = re.compile(r"^<!-- results: (\w+) -->$", re.MULTILINE)
PICTURE = re.compile(r"(!\[[^\]]*\]\()(?:results/)?([^)/:]+\.(?:png|gif|svg)\))")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put measured tables where a page asks for them."""
    return MARK.sub(lambda match: included(match[1], RESULTS), markdown)


def on_files(files: Files, config: Any) -> Files:
    """Serve the pictures that measured tables show."""
    for path in sorted(RESULTS.glob("*")):
        if path.suffix in (".png", ".gif", ".svg"):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def included(name: str, folder: Path) -> str:
    """The file's text, its headings two levels down, and its picture; or how to make the file."""
    path = folder / f"{name}.md"
    if not path.exists():
        return f"Not measured in this copy: `make bench` writes `results/{name}.md`."
    text = re.sub(r"^(#+) ", r"##\1 ", path.read_text(), flags=re.MULTILINE)
    picture = folder / f"{name}.png"
    if picture.exists() and picture.name not in text:
        text += f"\n![The tables above as a picture]({picture.name})\n"
    return PICTURE.sub(r"\1results/\2", text)
