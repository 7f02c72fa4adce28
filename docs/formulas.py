"""Turns the formulas of a page into MathML, which browsers draw by themselves.

`pymdownx.arithmatex` marks what stands between dollars; the usual next step is a script that is
loaded from elsewhere. Here LaTeX is translated when the site is built.
"""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Translate all formulas of a page."""
    html = INLINE.sub(lambda match: convert(unescape(match[1]).strip()), html)
    return BLOCK.sub(lambda match: block(unescape(match[1]).strip()), html)


def block(latex: str) -> str:
    """A formula on a line of its own, which scrolls where the screen is narrow."""
    return f'<div class="formula">{convert(latex, display="block")}</div>'
