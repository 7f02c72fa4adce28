"""The command line: `python -m examples.queens [train|eval|solve|compare|serve] ...`."""

import sys

from examples.queens.task import QueensTask
from tasks.puzzles.commands import Commands
from tasks.serving import serve


def main(arguments: list[str]) -> int:
    """Run a command."""
    return Commands(QueensTask(), serve).run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
