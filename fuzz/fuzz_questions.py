"""Coverage-guided fuzzing of what a stranger can send: questions of a Sudoku and of a maze.

    .venv/bin/pip install -c constraints.txt atheris
    PYTHONPATH=. .venv/bin/python fuzz/fuzz_questions.py -max_total_time=300 -max_len=400

Any text is a question, which then reads back from its own line, or is refused by a `ValueError`.
"""

import sys

import atheris

with atheris.instrument_imports(include=["tasks.sudoku", "tasks.maze"]):
    from tasks.maze.config import PRESETS as MAZES
    from tasks.maze.task import MazeTask
    from tasks.sudoku.config import PRESETS as SUDOKU
    from tasks.sudoku.task import SudokuTask

TASKS = [(SudokuTask(), SUDOKU["tiny"]), (MazeTask(), MAZES["tiny"])]


def one_input(data: bytes) -> None:
    """One text, for both."""
    text = data.decode("utf-8", "surrogateescape")
    for task, config in TASKS:
        try:
            symbols = task.question(text, config)  # type: ignore[arg-type]
        except ValueError:
            continue
        again = task.question(task.line(symbols), config)  # type: ignore[arg-type]
        if again != symbols:
            raise AssertionError(f"{text!r} does not come back")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
