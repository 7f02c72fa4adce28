"""Puzzle text that a stranger can send: questions of a Sudoku and of a maze; see `entry`.

Any text is a question, which then reads back from its own line, or is refused by a `ValueError`.
"""

from entry import fuzz, instrumented

with instrumented("tasks.sudoku", "tasks.maze"):
    from tasks.maze.config import PRESETS as MAZES
    from tasks.maze.task import MazeTask
    from tasks.sudoku.config import PRESETS as SUDOKU
    from tasks.sudoku.task import SudokuTask

TASKS = [(SudokuTask(), SUDOKU["tiny"]), (MazeTask(), MAZES["tiny"])]
SEEDS = [b"1234341221.343.1", b"1 2|3 4\n---+---\n", b"S  #  ##G", b"S #\n # \n  G\n"]


def one_input(data: bytes) -> None:
    """One text, for both; as a question of the service, and as one that the command splits."""
    text = data.decode("utf-8", "surrogateescape")
    for task, config in TASKS:
        try:
            symbols = task.question(text, config)  # type: ignore[arg-type]
        except ValueError:
            pass
        else:
            again = task.question(task.line(symbols), config)  # type: ignore[arg-type]
            if again != symbols:
                raise AssertionError(f"{text!r} does not come back")
        for part in task.split(text):
            try:
                task.parse(part)
            except ValueError:
                continue


if __name__ == "__main__":
    fuzz(one_input, "questions", SEEDS)
