"""The command line: `python -m tasks.maze [train|eval|solve|compare|serve] ...`."""

import sys

from tasks.maze.task import MazeTask
from tasks.puzzles.commands import Commands
from tasks.serving import serve

main = Commands(MazeTask(), serve).run

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
