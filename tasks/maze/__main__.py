"""The command line: `python -m tasks.maze [train|eval|solve|compare|serve] ...`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tasks import entry

if TYPE_CHECKING:
    from tasks.cli import CommandLine


def commands() -> CommandLine:
    """The command line; what it is made of is loaded here, since `--help` does without."""
    from tasks.maze.task import MazeTask
    from tasks.puzzles.commands import Commands
    from tasks.serving import serve

    return Commands(MazeTask(), serve)


def main(arguments: list[str]) -> int:
    """Run a command."""
    return entry.run("maze", commands, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
