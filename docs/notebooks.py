"""Runs a page of the gallery, and writes it as Markdown with pictures, and as a notebook.

A page is a Python file in `docs/gallery/` in percent format, which editors and jupytext open as a
notebook: `# %% [markdown]` begins a cell of text in comments, `# %%` one of code.

    python docs/notebooks.py docs/gallery/two_moons.py build/gallery

runs one page; `make docs` runs all, by way of `gallery_hooks.py`.
"""

import base64
import io
import json
import re
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GALLERY = ROOT / "docs" / "gallery"
# A link of the index to a page, as it lies in the repository.
LINK = re.compile(r"\]\((\w+)\.py\)")
# A link to a program of the gallery on another page.
FROM_OUTSIDE = re.compile(r"\]\(((?:\.\./)*gallery/\w+)\.py\)")
HEADER = re.compile(r"^# %%(.*)\n", re.MULTILINE)


@dataclass
class Cell:
    """A cell, the line in the file at which it begins, and what it has printed and drawn."""

    source: str
    is_text: bool
    line: int
    output: str = ""
    pictures: list[bytes] = field(default_factory=list)


def cells_of(text: str) -> list[Cell]:
    """The cells of a page in percent format."""
    first, *parts = HEADER.split(text)
    cells, line = [], first.count("\n") + 1
    for header, body in zip(parts[::2], parts[1::2], strict=True):
        is_text = header.strip() == "[markdown]"
        source = re.sub(r"^# ?", "", body, flags=re.MULTILINE) if is_text else body
        cells.append(
            Cell(source.strip("\n"), is_text, line + 1 + len(body) - len(body.lstrip("\n")))
        )
        line += 1 + body.count("\n")
    return cells


def execute(cells: list[Cell], path: Path) -> None:
    """Run the code in one namespace; `plt.show()` hands the open figures to the cell.

    Pictures are drawn in the style of all others of the project, but for grid lines and legends.
    A page that ends with `raise SystemExit(message)`, since something is not installed, has the
    message for its last output.
    """
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    plt.style.use("implicit.diagnostics.house")
    plt.rc("axes", grid=False)  # lines would lie over images
    plt.rc("legend", frameon=True)  # some stand on curves
    plt.show = lambda: None
    for cell in (cell for cell in cells if not cell.is_text):
        # Line numbers as in the file.
        code = compile("\n" * (cell.line - 1) + cell.source, str(path), "exec")
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                exec(code, vars(module))
        except SystemExit as stopped:
            cell.output = f"{printed.getvalue()}{stopped}\n"
            return
        cell.output = printed.getvalue()
        for number in plt.get_fignums():
            drawn = io.BytesIO()
            plt.figure(number).savefig(drawn, dpi=110)
            cell.pictures.append(drawn.getvalue())
        plt.close("all")


def page_of(cells: list[Cell], name: str) -> tuple[str, dict[str, bytes]]:
    """The page as Markdown, and its pictures by file name."""
    parts, pictures = [], dict[str, bytes]()
    for cell in cells:
        parts.append(cell.source if cell.is_text else f"```python\n{cell.source}\n```")
        if cell.output:
            parts.append(f"```text\n{cell.output.rstrip()}\n```")
        for picture in cell.pictures:
            pictures[file := f"{name}-{len(pictures) + 1}.png"] = picture
            parts.append(f"![What the code above draws]({file})")
    parts.append(f"This page is a program: [download it as a notebook]({name}.ipynb).")
    return "\n\n".join(parts) + "\n", pictures


def notebook_of(cells: list[Cell]) -> dict[str, Any]:
    """The page as a notebook of format 4, with its outputs."""
    found = []
    for cell in cells:
        entry: dict[str, Any] = {"metadata": {}, "source": cell.source.splitlines(keepends=True)}
        if cell.is_text:
            found.append({"cell_type": "markdown", **entry})
            continue
        outputs: list[dict[str, Any]] = []
        if cell.output:
            lines = cell.output.splitlines(keepends=True)
            outputs.append({"output_type": "stream", "name": "stdout", "text": lines})
        for picture in cell.pictures:
            data = {"image/png": base64.b64encode(picture).decode()}
            outputs.append({"output_type": "display_data", "metadata": {}, "data": data})
        found.append({"cell_type": "code", "execution_count": None, "outputs": outputs, **entry})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"nbformat": 4, "nbformat_minor": 4, "metadata": metadata, "cells": found}


def write(path: Path, out: Path, run: bool = True) -> None:
    """Make the page's Markdown, notebook and pictures in the folder `out`/name."""
    cells, folder = cells_of(path.read_text()), out / path.stem
    if run:
        execute(cells, path)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    text, pictures = page_of(cells, path.stem)
    (folder / f"{path.stem}.md").write_text(text)
    (folder / f"{path.stem}.ipynb").write_text(json.dumps(notebook_of(cells), indent=1))
    for file, picture in pictures.items():
        (folder / file).write_bytes(picture)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
