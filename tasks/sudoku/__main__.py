"""The command line: `python -m tasks.sudoku [train|eval|solve|compare|serve] ...`."""

import sys

from tasks.puzzles.commands import Commands
from tasks.serving import serve
from tasks.sudoku.task import SudokuTask

main = Commands(SudokuTask(), serve).run

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
