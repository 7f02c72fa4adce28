"""What belongs to no task: `python -m tasks reproduce --list`, and the tasks of other packages."""

import importlib.metadata
import reprlib
import sys
from typing import cast

from tasks.entry import version
from tasks.output import print_error

# Entry points of other packages: functions that take the arguments and return the exit status.
GROUP = "attractor_models.tasks"
OWN = ("sudoku", "maze", "lm")
USAGE = """\
usage: python -m tasks reproduce --list
       python -m tasks --version
       python -m tasks TASK ...

Print the paper's tables row by row: the command that gives a figure, the
preset, its budget, the memory and hours that are planned for it, and what
differs from the published run.

The tasks have command lines of their own: python -m tasks.sudoku, tasks.maze
and tasks.lm. TASK is one that another package has installed as an entry point
of the group attractor_models.tasks.
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
    installed = importlib.metadata.entry_points(group=GROUP)
    if arguments and arguments[0] in installed.names:
        return _run_installed(installed[arguments[0]], arguments[1:])
    if not arguments or arguments[-1] in ("-h", "--help", "help"):
        print(USAGE, end="")
        if installed:
            print(f"Installed: {', '.join(sorted(installed.names))}.")
        return 0
    got = repr(" ".join(arguments))
    if arguments[0] in OWN:
        print_error(f"write `python -m tasks.{' '.join(arguments)}`, with a dot.")
        return 2
    takes = "`python -m tasks` takes `reproduce --list` or `--version`"
    if installed:
        takes += f", or an installed task ({', '.join(sorted(installed.names))})"
    print_error(f"{takes}, got {got}.")
    return 2


def _run_installed(point: importlib.metadata.EntryPoint, arguments: list[str]) -> int:
    """Run the command line of another package's task."""
    from solvers.entry_points import BrokenEntryPoint, broken, load_entry_point

    try:
        task = load_entry_point(point, "task")
        if not callable(task):
            raise broken(point, "task", f"is no function, but {reprlib.repr(task)}")
    except BrokenEntryPoint as error:
        print_error(error)
        return 2
    return cast("int", task(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
