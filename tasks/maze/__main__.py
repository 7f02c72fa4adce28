"""The command line: `python -m tasks.maze [train|eval|solve|compare|serve] ...`."""

import sys

from tasks.maze.task import MazeTask
from tasks.puzzles.commands import Commands
from tasks.serving import serve


def main(arguments: list[str]) -> int:
    """Run a command."""
    return Commands(MazeTask(), serve).run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
