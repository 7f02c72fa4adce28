"""Makes a page of the help of each task's commands, as `--help` prints it.

The texts are those of `tasks/*/help`, which a test keeps equal to the parsers.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
TASKS = {"sudoku": "Sudoku", "maze": "Mazes", "lm": "Language models"}
# In the order in which they are used.
ORDER = ("train", "eval", "solve", "generate", "serve", "compare", "internalise", "loops",
         "export", "plan", "prepare", "convert", "harness")  # fmt: skip
# A link of the index to a help page, as it lies in the repository.
LINK = re.compile(r"\]\(\.\./\.\./tasks/(\w+)/help/(\w+)\.txt\)")


def on_config(config: Any) -> Any:
    """List the pages in the navigation, below the index."""
    pages = ["commands/index.md", *({name: f"commands/{task}.md"} for task, name in TASKS.items())]
    config.nav = [replaced(entry, "Commands", pages) for entry in config.nav]
    return config


def replaced(entry: Any, title: str, pages: list[Any]) -> Any:
    """The entry of the navigation with `pages` under the one of this title, at any depth."""
    if isinstance(entry, dict):
        return {
            name: pages if name == title else replaced(below, title, pages)
            for name, below in entry.items()
        }
    if isinstance(entry, list):
        return [replaced(part, title, pages) for part in entry]
    return entry


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of the index from the texts to the pages made of them."""
    if page.file.src_uri != "commands/index.md":
        return markdown
    return LINK.sub(lambda match: f"]({match[1]}.md#{match[2]})", markdown)


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each task."""
    for task, title in TASKS.items():
        text = page_of(task, title)
        files.append(File.generated(config, f"commands/{task}.md", content=text))
    return files


def page_of(task: str, title: str) -> str:
    """The commands of a task, each with its help."""
    folder = ROOT / "tasks" / task / "help"
    named = {path.stem for path in folder.glob("*.txt")} - {"usage"}
    known = [*(name for name in ORDER if name in named), *sorted(named.difference(ORDER))]
    parts = [f"# {title}: commands", fenced(folder / "usage.txt")]
    for name in known:
        parts += [f"## {name}", fenced(folder / f"{name}.txt")]
    return "\n\n".join(parts) + "\n"


def fenced(path: Path) -> str:
    """A text as it is."""
    text = path.read_text(encoding="utf-8").strip("\n")
    return f"```text\n{text}\n```"
