"""Puts LaTeX in the place of the formulas of docstrings, on the pages of the reference.

A docstring has its formulas as indented text, which `help` shows. Here `docstring_formulas.toml`
gives the LaTeX of each, and `formulas.py`, which runs next, typesets it like that of other pages.
"""

import functools
import re
import tomllib
from html import escape, unescape
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_suffix(".toml")
_PRE = r"<pre\b[^>]*>(?:(?!</pre>).)*</pre>"
BLOCK = re.compile(rf'<div class="[^"]*highlight[^"]*">\s*{_PRE}\s*</div>|{_PRE}', re.DOTALL)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Replace every block of a page of the reference that is a known formula."""
    return replaced(html) if page.file.src_uri.startswith("reference/") else html


def replaced(html: str) -> str:
    """The HTML with LaTeX in the place of its formulas; other blocks stay as they are."""

    def latex(match: re.Match[str]) -> str:
        lines = known().get(joined(unescape(re.sub(r"<[^>]*>", "", match[0]))))
        return match[0] if lines is None else "\n".join(map(_marked, lines))

    return BLOCK.sub(latex, html)


@functools.cache
def known() -> dict[str, list[str]]:
    """The lines of LaTeX of each formula, by its text in the docstring."""
    tables = tomllib.loads(TABLE.read_text(encoding="utf-8")).values()
    return {
        joined(text): latex.strip().splitlines()
        for table in tables
        for text, latex in table.items()
    }


def joined(text: str) -> str:
    """A formula without line ends, and with single spaces."""
    return " ".join(text.split())


def _marked(latex: str) -> str:
    return f'<div class="arithmatex">\\[{escape(latex, quote=False)}\\]</div>'
