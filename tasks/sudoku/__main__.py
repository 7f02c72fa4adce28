"""The command line: `python -m tasks.sudoku [train|eval|solve|compare|serve] ...`."""

import sys

from tasks.common.commands import Commands
from tasks.common.device import keep_freed_memory
from tasks.sudoku.task import SudokuTask


def main(arguments: list[str]) -> int:
    """Run a command."""
    return Commands(SudokuTask()).run(arguments)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
