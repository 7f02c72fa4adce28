"""The command line: `python -m tasks.maze [train|eval|solve|compare|serve] ...`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tasks import entry

if TYPE_CHECKING:
    from tasks.cli import CommandLine


def commands() -> CommandLine:
    """The command line; what it is made of is loaded here, since `--help` does without."""
    from tasks.maze.task import MazeTask
    from tasks.puzzles.commands import Commands

    return Commands(MazeTask(), _serve)


def _serve(commands: Any, arguments: list[str]) -> int:
    """Load the service, which no other command needs, and run it."""
    from tasks.serving import serve

    return serve(commands, arguments)


def main(arguments: list[str]) -> int:
    """Run a command."""
    return entry.run("maze", commands, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
