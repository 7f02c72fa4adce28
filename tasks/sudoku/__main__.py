"""The command line: `python -m tasks.sudoku [train|eval|solve] ...`; train is the default."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from models import GridAttractor
from tasks.common.checkpoint import Checkpoint, CheckpointError
from tasks.common.device import choose_device
from tasks.common.plots import plot_learning
from tasks.common.train import Interrupted, Trainer
from tasks.sudoku.board import Board, Puzzle, format_grid, parse
from tasks.sudoku.config import DEFAULT_PRESET, PRESETS, SudokuConfig, preset
from tasks.sudoku.evaluate import draw, evaluate_puzzles, print_figures, solve_puzzles
from tasks.sudoku.files import read_puzzles
from tasks.sudoku.runs import load_model, new_folder, newest_checkpoint, read_config
from tasks.sudoku.solver import unique_solution
from tasks.sudoku.task import SudokuTask, make_puzzles

USAGE = f"""Train, evaluate and use an Attractor Model that solves Sudoku.

  python -m tasks.sudoku                               train ({DEFAULT_PRESET}), then evaluate
  python -m tasks.sudoku train --preset {"|".join(PRESETS)}  other sizes; --help lists all flags
  python -m tasks.sudoku train --resume CHECKPOINT     go on with an interrupted run
  python -m tasks.sudoku eval --checkpoint CHECKPOINT --data puzzles.csv
  python -m tasks.sudoku solve "53..7...." [...]       puzzles, or a file of them
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Evaluate a trained model.

    Attributes:
        checkpoint: The model; by default the newest 9x9 one under `runs/`.
        data: CSV `source,question,answer,rating`, or one puzzle per line; by default the
            test puzzles of the run.
        skip_bad: Skip malformed lines of the file instead of stopping at the first.
        limit: Only so many puzzles, from the top.
        max_steps: Budget of solver updates; by default the run's.
        solver: Another solver than the run's.
        device: "auto", "cpu", "cuda" or "cuda:N".
        json: Also write the result here.
    """

    checkpoint: Path | None = None
    data: Path | None = None
    skip_bad: bool = False
    limit: int | None = None
    max_steps: int | None = None
    solver: str | None = None
    device: str = "auto"
    json: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolveOptions:
    """Solve puzzles with a trained model.

    Attributes:
        puzzles: Strings with `.` or `0` for blanks, or files with one puzzle per line.
        checkpoint: The model; by default the newest one under `runs/` for the board's size.
        max_steps: Budget of solver updates; by default the run's.
        solver: Another solver than the run's.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    puzzles: Annotated[tuple[str, ...], tyro.conf.Positional]
    checkpoint: Path | None = None
    max_steps: int | None = None
    solver: str | None = None
    device: str = "auto"


@dataclasses.dataclass(frozen=True)
class _Start:
    """What a training command begins with."""

    preset: str
    config: SudokuConfig
    folder: Path
    checkpoint: Checkpoint | None


def train(arguments: list[str]) -> int:
    """Train, evaluate, draw, and print the result."""
    began = time.monotonic()
    start = _start(arguments)
    config, folder = start.config, start.folder
    torch.manual_seed(config.seed)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    print(f"Making {config.train_puzzles} + {config.test_puzzles} puzzles ...", flush=True)
    train_set, test_set = make_puzzles(config)
    trainer = Trainer(
        task=SudokuTask(config.board, train_set, test_set, config.eval_steps),
        model=config.build().to(choose_device(config.device)),
        config=config,
        folder=folder,
        max_steps=config.train_steps,
        meta={"task": "sudoku", "preset": start.preset, "config": config.to_json()},
    )
    if start.checkpoint is not None:
        trainer.restore(start.checkpoint)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(f"Training {config.model}, {parameters:,} parameters, in {folder}", flush=True)
    trainer.run()
    result = {
        "task": "sudoku",
        "preset": start.preset,
        "parameters": parameters,
        "train_steps": trainer.step,
        "train_minutes": round(trainer.seconds / 60, 2),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "eval": _evaluate_run(trainer, start.preset, test_set),
        "wall_seconds": round(time.monotonic() - began, 1),
        "config": config.to_json(),
    }
    _finish(result, folder / "result.json")
    print(f"Checkpoint, log and pictures are in {folder}")
    return 0


def _start(arguments: list[str]) -> _Start:
    """A new run from a preset and flags, or an old one from its checkpoint."""
    arguments, resume = _take(arguments, "--resume")
    arguments, name = _take(arguments, "--preset")
    if resume is not None:
        if arguments or name:
            raise ValueError("`--resume` takes its options from the checkpoint: drop the others.")
        path = Path(resume)
        checkpoint = Checkpoint.load(path)
        return _Start(
            checkpoint.meta["preset"], read_config(checkpoint, path), path.parent, checkpoint
        )
    name = name or DEFAULT_PRESET
    config = tyro.cli(SudokuConfig, args=arguments, default=preset(name), prog="tasks.sudoku train")
    choose_device(config.device)
    return _Start(name, config, new_folder(config.out, _run_name(name, config)), None)


def _evaluate_run(trainer: Trainer, name: str, puzzles: list[Puzzle]) -> dict[str, Any]:
    """Measure and draw a finished run; an interruption loses nothing here either."""
    config: Any = trainer.config
    print("Evaluating ...", flush=True)
    try:
        model, _ = load_model(trainer.path, device=config.device)
        figures = evaluate_puzzles(model, puzzles, config.board, config.eval_steps)
        plot_learning(trainer.history, trainer.folder / "learning.png")
        if isinstance(model, GridAttractor):
            draw(model, puzzles[0], figures, config.board, trainer.folder)
    except KeyboardInterrupt:
        raise Interrupted(trainer.path) from None
    print_figures(f"{config.model} on {len(puzzles)} held-out puzzles ({name})", figures)
    return figures


def evaluate(arguments: list[str]) -> int:
    """Evaluate a checkpoint on its own test puzzles or on a file."""
    options = tyro.cli(EvalOptions, args=arguments, prog="tasks.sudoku eval")
    path = options.checkpoint or newest_checkpoint(81)
    model, config = load_model(path, device=options.device, solver=options.solver)
    if options.data is None:
        puzzles = make_puzzles(config)[1]
    else:
        puzzles = read_puzzles(options.data, config.board, skip_bad=options.skip_bad)
    puzzles = puzzles[: options.limit]
    if not puzzles:
        raise ValueError(f"There is no puzzle to evaluate in {options.data or 'the test set'}.")
    max_steps = config.eval_steps if options.max_steps is None else options.max_steps
    figures = evaluate_puzzles(model, puzzles, config.board, max_steps)
    source = str(options.data) if options.data else "held-out puzzles"
    print_figures(f"{path} on {len(puzzles)} of {source}", figures)
    result = {"task": "sudoku", "data": source, "eval": figures, "config": config.to_json()}
    _finish(result, options.json)
    return 0


def solve(arguments: list[str]) -> int:
    """Answer puzzles from the command line; exit status 1 if an answer is not valid."""
    options = tyro.cli(SolveOptions, args=arguments, prog="tasks.sudoku solve")
    texts = [line for text in options.puzzles for line in _lines(text)]
    if not texts:
        raise ValueError("Name a puzzle, or a file with one puzzle per line.")
    questions = [parse(text) for text in texts]
    board = Board.for_length(len(questions[0]))
    for question in questions:
        if len(question) != board.num_cells:
            raise ValueError("All puzzles of one call must be of one size.")
        unique_solution(question, board)
    path = options.checkpoint or newest_checkpoint(board.num_cells)
    model, config = load_model(path, device=options.device, solver=options.solver)
    if config.board != board:
        raise ValueError(
            f"{path} solves {config.board.name} boards, but the puzzle is {board.name}."
        )
    max_steps = config.eval_steps if options.max_steps is None else options.max_steps
    print(f"Solving with {path}")
    solved = solve_puzzles(model, questions, max_steps)
    for question, found in zip(questions, solved, strict=True):
        print(format_grid(found.answer, given=question))
        verdict = "a valid solution" if found.valid else "NOT a valid solution"
        effort = f"{found.num_steps} solver steps, residual {found.residual:.1e}"
        if not isinstance(model, GridAttractor):
            effort = "one pass without a solver"
        print(f"{effort}: {verdict}\n")
    return 0 if all(found.valid for found in solved) else 1


def main(arguments: list[str]) -> int:
    """Run a command; errors of the caller become one line and exit status 2."""
    commands = {"train": train, "eval": evaluate, "solve": solve}
    if arguments[:1] in (["-h"], ["--help"], ["help"]):
        print(USAGE)
        return 0
    named = bool(arguments) and not arguments[0].startswith("-")
    command = arguments[0] if named else "train"
    try:
        if command not in commands:
            raise ValueError(f"Unknown command {command!r}. Commands: {', '.join(commands)}.")
        return commands[command](arguments[1:] if named else arguments)
    except Interrupted as stop:
        print("\nStopped; nothing is lost. Go on with:")
        print(f"  python -m tasks.sudoku train --resume {stop.path}")
        return 130
    except KeyboardInterrupt:
        print("\nStopped before there was anything to keep.")
        return 130
    except (ValueError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _take(arguments: list[str], flag: str) -> tuple[list[str], str | None]:
    """Remove `flag VALUE` or `flag=VALUE` from the arguments."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return arguments[:i] + arguments[i + 1 :], argument.partition("=")[2]
        if argument == flag:
            if i + 1 == len(arguments):
                raise ValueError(f"`{flag}` needs a value.")
            return arguments[:i] + arguments[i + 2 :], arguments[i + 1]
    return arguments, None


def _run_name(name: str, config: SudokuConfig) -> str:
    return name if config.model == "attractor" else f"{name}-{config.model}"


def _lines(text: str) -> list[str]:
    path = Path(text)
    if len(text) < 200 and path.is_file():
        return [line for line in path.read_text().splitlines() if line.strip()]
    return [text]


def _finish(result: dict[str, Any], path: Path | None) -> None:
    line = json.dumps(result)
    if path is not None:
        path.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
