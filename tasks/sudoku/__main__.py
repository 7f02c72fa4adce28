"""The command line: `python -m tasks.sudoku [train|eval|solve|compare|serve] ...`."""

import sys

from tasks.puzzles.commands import Commands
from tasks.serving import serve
from tasks.sudoku.task import SudokuTask


def main(arguments: list[str]) -> int:
    """Run a command."""
    return Commands(SudokuTask(), serve).run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
