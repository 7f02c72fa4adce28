"""Griffe's Google style knows `Examples:` only; the project writes `Example:`, for there is one."""

import re
from typing import Any

import griffe

SECTION = re.compile(r"^(\s*)Example:[ ]*$", re.MULTILINE)


class OneExample(griffe.Extension):
    """Let the parser see a section of examples, so that doctests become code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section in one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub(r"\1Examples:", obj.docstring.value)
