"""What belongs to no task: `python -m tasks reproduce --list`."""

import sys

from tasks.entry import version

USAGE = """\
usage: python -m tasks reproduce --list
       python -m tasks --version

Print the paper's tables row by row: the command that gives a figure, the preset, its budget, the
memory and hours that are planned for it, and what differs from the published run.

The tasks have command lines of their own: python -m tasks.sudoku, tasks.maze and tasks.lm.
"""


def main(arguments: list[str]) -> int:
    """Run a command, and return the exit status."""
    if arguments == ["reproduce", "--list"]:
        from tasks.reproduce import listing

        print(listing())
        return 0
    if arguments == ["--version"]:
        print(version())
        return 0
    if not arguments or arguments[-1] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    got = repr(" ".join(arguments))
    takes = "`python -m tasks` takes `reproduce --list` or `--version`"
    print(f"error: {takes}, got {got}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
