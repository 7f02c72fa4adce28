"""The help pages of all commands, rendered once so that `--help` need not load torch.

Run as `python tests/support/help_pages.py` to write them anew after a change to an option.
"""

import contextlib
import importlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from tasks import entry

TASKS = ("lm", "maze", "sudoku")
COLUMNS = "80"


def rendered() -> Iterator[tuple[Path, str]]:
    """Each page's file, and what it should hold."""
    plain = {"COLUMNS": COLUMNS, "NO_COLOR": "1", "TERM": "dumb"}
    with mock.patch.dict(os.environ, plain):
        for task in TASKS:
            commands = importlib.import_module(f"tasks.{task}.__main__").commands()
            folder = entry.help_folder(task)
            yield folder / f"{entry.USAGE}.txt", commands.usage
            for name in commands.commands():
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
                    commands.run([name, "--help"])
                lines = [line.rstrip() for line in printed.getvalue().splitlines()]
                yield folder / f"{name}.txt", "\n".join(lines).strip("\n") + "\n"


if __name__ == "__main__":
    for path, text in rendered():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
