"""How the command line of a task begins: help and version at once, all else by `tasks.cli`.

Neither torch nor any package of an extra is loaded here. So `--help` answers at once, and a command
whose packages are missing says which extra has them.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tasks import __version__
from tasks.extras import advice
from tasks.output import print_error

HELP = ("-h", "--help")
# The page of `--help` without a command.
USAGE = "usage"


class Runnable(Protocol):
    """A `tasks.cli.CommandLine`, which is not imported here."""

    def run(self, arguments: list[str]) -> int:
        """Run a command, and return the exit status."""
        ...


def run(task: str, load: Callable[[], Runnable], arguments: list[str]) -> int:
    """Run a command line.

    Args:
        task: Name of its package in `tasks`, which has a folder of help pages.
        load: Imports what the command line is made of.
        arguments: Those after `python -m tasks.<task>`.

    Returns:
        The exit status.
    """
    if arguments == ["--version"]:
        print(version())
        return 0
    if (page := help_page(task, arguments)) is not None:
        print(page.read_text(encoding="utf-8"), end="")
        return 0
    try:
        return load().run(arguments)
    except ImportError as error:
        message = advice(error, f"`python -m tasks.{task}`")
        if message is None:
            raise
        print_error(message)
        return 2


def version() -> str:
    """The version of this library, and those that a report of a fault should name."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "not installed"
    return f"attractor-models {__version__} (torch {torch}, Python {platform.python_version()})"


def help_folder(task: str) -> Path:
    """The folder of a task's help pages, which `tests/support/help_pages.py` writes."""
    return Path(__file__).parent / task / "help"


def help_page(task: str, arguments: list[str]) -> Path | None:
    """The page that arguments ask for and nothing else; None if none is written for them."""
    if arguments in (["-h"], ["--help"], ["help"]):
        name = USAGE
    elif len(arguments) == 2 and arguments[1] in HELP and arguments[0].isidentifier():
        name = arguments[0]
    else:
        return None
    path = help_folder(task) / f"{name}.txt"
    return path if path.is_file() else None
