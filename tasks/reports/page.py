"""A result as one page of HTML, with its pictures inside, which can be sent to somebody."""

import base64
import html
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.output import STDOUT, wrapped

KINDS = {".png": "image/png", ".gif": "image/gif"}
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
td, th {{ text-align: left; padding: 0.1rem 1.5rem 0.1rem 0; vertical-align: top }}
figure {{ margin: 2rem 0 }}
img {{ max-width: 100% }}
pre {{ overflow-x: auto; background: #f4f4f4; padding: 0.8rem }}
</style>
<h1>{title}</h1>
<pre>{command}</pre>
<h2>Figures</h2>
<table>
{rows}
</table>
{pictures}
<h2>Configuration</h2>
<pre>{config}</pre>
</html>
"""


def write_page(
    path: Path, title: str, result: dict[str, Any], pictures: Path | None = None
) -> None:
    """Write the page of a result.

    Args:
        path: The file, which ends in `.html`.
        title: What the result is of.
        result: JSON values; its "config" is shown apart.
        pictures: A folder whose PNG and GIF files are shown, if any.
    """
    config = json.dumps(result.get("config", {}), indent=2)
    figures = {name: value for name, value in result.items() if name != "config"}
    files = sorted(pictures.iterdir()) if pictures is not None else []
    page = PAGE.format(
        title=html.escape(title),
        command=html.escape(shlex.join(["python", *sys.orig_argv[1:]])),
        rows="\n".join(_row(name, value) for name, value in _flat(figures)),
        pictures="\n".join(_picture(file) for file in files if file.suffix in KINDS),
        config=html.escape(config),
    )
    path.write_text(page, encoding="utf-8")


def write_page_beside(
    file: Path | None, title: str, result: dict[str, Any], pictures: Path | None = None
) -> None:
    """Write the page beside the file of a result, with the same name, and say so.

    Without a file it does nothing.
    """
    if file is not None and file != STDOUT:
        page = file.with_suffix(".html")
        write_page(page, title, result, pictures)
        print(wrapped(f"Written: {file}, and as a page {page}"))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Names and plain values, those of parts as "part, name"."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, part in value.items():
        yield from _flat(part, f"{name}, {key}" if name else str(key))


def _row(name: str, value: Any) -> str:
    return f"<tr><th>{html.escape(name)}</th><td>{_cell(value)}</td></tr>"


def _cell(value: Any) -> str:
    """A value; a list of records as a table in it."""
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        names = list(dict.fromkeys(name for each in value for name in each))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        rows = ["".join(f"<td>{_cell(each.get(name))}</td>" for name in names) for each in value]
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in (head, *rows))}</table>"
    shown = f"{value:.6g}" if isinstance(value, float) else json.dumps(value).strip('"')
    return html.escape(shown)


def _picture(file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    name = html.escape(file.stem)
    source = f"data:{KINDS[file.suffix]};base64,{data}"
    return f'<figure><img src="{source}" alt="{name}"><figcaption>{name}</figcaption></figure>'
