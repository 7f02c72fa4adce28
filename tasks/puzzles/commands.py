"""The commands of a grid puzzle: `python -m tasks.<name> [train|eval|solve|...] ...`.

As in `tasks.cli`, a command imports what other commands do without when it is called.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tasks import shipped
from tasks.cli import CommandLine
from tasks.flags import require_defaults
from tasks.output import print_result, result_alone, wrapped
from tasks.puzzles.command_options import (
    ConvertOptions,
    EvalOptions,
    ExportOptions,
    ModelOptions,
    SolveOptions,
)
from tasks.puzzles.config import GridConfig
from tasks.puzzles.evaluate import BATCH, Predictions, solve_batch, trajectory
from tasks.puzzles.puzzle import GENERATED
from tasks.puzzles.reliability import band_of, bands
from tasks.puzzles.task import GridTask
from tasks.runs import choose_checkpoint, last_score, load_model, locate
from tasks.training.options import flag

if TYPE_CHECKING:
    from tasks.experiments.jobs import SearchOptions
    from tasks.experiments.run import Experiment

# What a model that is not solved has no use for, and why.
SOLVING = ("max_steps", "solver", "draw")
# Puzzles that `solve` solves at a time on a CPU: a bar moves that often, and more are no faster.
TOGETHER = 16
# Characters that fit in a line of a terminal.
LINE = 100
UNSOLVED = "on a model that is solved; this one is not"


class Commands(CommandLine):
    """The command line of one grid puzzle.

    Args:
        task: Its puzzles.
        serve: The command of that name, called as serve(commands, arguments); the service lies
            above this package.
    """

    task: GridTask[Any]

    def __init__(self, task: GridTask[Any], serve: Callable[[Commands, list[str]], int]) -> None:
        super().__init__(task)
        self.serve = serve

    @property
    def purpose(self) -> str:
        """See `CommandLine`."""
        noun, name = self.task.noun, self.task.name
        return f"Train, evaluate and use models that solve {noun}s: the task {name}."

    @property
    def calls(self) -> dict[str, str]:
        """See `CommandLine`."""
        return {
            "(none)": "the same as `train`",
            "train --preset NAME": "one of the presets below",
            "train --resume FILE": "go on with an interrupted run",
            "eval": "accuracy, convergence; --max-steps, --breadth",
            "solve PUZZLE...": "puzzles, or files of them",
            "compare": "models at equal size and time, one table",
            "serve": "answers over HTTP, and a page",
            "export FILE.pt2": "a program that runs without this project",
            "convert FILE": "released weights of TRM, HRM, EqR; --preset, --out",
            "plan": "memory, time and cost on GPUs; --gpus",
        }

    def commands(self) -> dict[str, Callable[[list[str]], int]]:
        """See `CommandLine`."""
        return {
            "train": self.train,
            "eval": self.evaluate,
            "solve": self.solve,
            "compare": self.compare,
            "serve": functools.partial(self.serve, self),
            "export": self.export,
            "convert": self.convert,
            "plan": self.plan,
        }

    @property
    def experiment(self) -> Experiment:
        """See `CommandLine`."""
        from tasks.puzzles.experiment import GridExperiment

        return GridExperiment(self.task)

    def comparison(self) -> tuple[type[SearchOptions], Callable[[str, Any, Any], object]]:
        """See `CommandLine`."""
        from tasks.puzzles.experiment import CompareOptions, compare_puzzles

        return CompareOptions, functools.partial(compare_puzzles, self.task)

    def require_source(self, config: GridConfig, name: str) -> None:
        """See `CommandLine`."""
        self.task.require_file(getattr(config.data, name), flag(name))

    def trained(self, options: Any, side: int | None = None) -> tuple[Path, Any, GridConfig, Any]:
        """The model of a command, and where it is.

        Args:
            options: Names the checkpoint, or one is chosen; see `ModelOptions`.
            side: Of the grids that it is for; by default any. One that was trained on this size
                is preferred to one whose weights merely fit.

        Returns:
            The path, the model, its configuration, and the budget of solver updates; None for a
            model that is not solved.

        Raises:
            CheckpointError: There is no such checkpoint.
            ValueError: An option that this model has no use for, or unknown device or solver.
        """

        def fits(config: GridConfig) -> bool:
            # A transformer, which has no solve, must be named.
            return side in (None, config.spec().side) and config.model.name != "transformer"

        def can_fit(config: GridConfig) -> bool:
            if side is None or config.model.name == "transformer":
                return False
            from tasks.puzzles.sizes import can_resize

            return can_resize(config, side)

        if options.checkpoint is not None:
            path = locate(self.task.name, options.checkpoint)
        else:
            what = f"of {self.task.noun}s" if side is None else f"for boards of {side**2} cells"
            path = choose_checkpoint(self.task, fits, what, can_fit)
        device = getattr(options, "device", "cpu")
        model, config = load_model(self.task, path, device=device, solver=options.solver)
        if config.solve.eval_max_steps is None:
            require_defaults(options, SOLVING, UNSOLVED)
        budget = options.max_steps
        return path, model, config, config.solve.eval_max_steps if budget is None else budget

    def _sized(
        self, options: ModelOptions, side: int | None
    ) -> tuple[Path, Any, Any, int | None, str | None]:
        """As `trained`, for boards of a side, with what is not known of answers on that size."""
        path, model, config, steps = self.trained(options, side)
        if side in (None, config.spec().side):
            return path, model, config, steps, None
        from tasks.puzzles.sizes import at_size

        model, config, caution = at_size(model, config, side, path, self.task.noun)
        return path, model, config, steps, caution

    def next_steps(self, config: GridConfig, folder: str) -> list[str]:
        """See `CommandLine`."""
        example = self.task.example(config)
        puzzle = shlex.quote(example) if len(example) <= LINE else "FILE"
        solve = f"{self.program} solve {puzzle} --checkpoint {folder}"
        return [solve, *super().next_steps(config, folder)]

    def evaluate(self, arguments: list[str]) -> int:
        """Evaluate a checkpoint on its own test puzzles or on a file."""
        from tasks.puzzles.evaluate import add_path_noise
        from tasks.puzzles.report import measure, print_figures, scale, search_curve
        from tasks.reports.logger import ProgressBar
        from tasks.reports.page import write_page_beside

        options = self.options(EvalOptions, arguments, "eval")
        side = None
        if options.data is not None:
            self.task.require_file(options.data, "--data")
            side = self.task.side_of(options.data)
        path, model, config, steps, caution = self._sized(options, side)
        if options.path_noise:
            add_path_noise(model)
        if options.compile:
            from tasks.device import compile_blocks

            compile_blocks(model)
        if options.max_steps is not None:
            config = config.changed(eval_max_steps=steps)
        puzzles, source = self._held_out(options, path, config)
        puzzles = puzzles[: options.limit]
        if not puzzles:
            where = options.data or "the test set"
            raise ValueError(f"There is no {self.task.noun} to evaluate in {where}.")
        if caution is not None:  # before what may take long
            print(wrapped(caution), flush=True)
        with ProgressBar() as bar:
            figures = measure(self.task, model, puzzles, config, options.quick, bar)
            figures["trained_size"] = caution is None
            if options.breadth > 1 or options.draw is not None:
                figures |= scale(self.task, model, puzzles, config, options, bar)
            if options.attempts:
                figures |= search_curve(self.task, model, puzzles, config, options, bar)
        generated = all(puzzle.source == GENERATED for puzzle in puzzles)
        maker = ", which this project's generator made" if generated else ""
        name = f"The model {path.stem!r}" if shipped.holds(path) else path
        title = f"{name} on {len(puzzles)} of {source}{maker}"
        print_figures(title, figures, self.task, self._of_other_puzzles(options, path, config))
        result = {
            "task": self.task.name,
            "data": source if options.data is None else str(options.data),
            "generated": generated,
            "eval": figures,
            "config": config.to_json(),
        }
        print_result(result, options.json)
        if options.draw is not None:
            print(wrapped(f"Drawn: the plots in {options.draw}"))
        write_page_beside(options.json, f"{path} on {source}", result, options.draw)
        return 0

    def _held_out(
        self, options: EvalOptions, path: Path, config: GridConfig
    ) -> tuple[list[Any], str]:
        """The puzzles to evaluate a model on, and what they are."""
        if options.data is not None:
            puzzles = self.task.read(options.data, config, skip_bad=options.skip_bad)
            return puzzles, f"the {self.task.noun}s of {options.data}"
        test = config.data.test_data
        if test is None or test.is_file():
            made_for = "its run" if test is None else test
            return self.task.held_out(config), f"the held-out {self.task.noun}s of {made_for}"
        if (beside := shipped.held_out(path)) is not None:
            return self.task.read(beside, config), f"the {self.task.noun}s of {beside}"
        raise ValueError(
            f"{path} was evaluated on {test}, which is not on this machine. Name a file of "
            f"{self.task.noun}s with `--data FILE`: one a line, or a CSV file with the columns "
            "`question` and `answer`."
        )

    def _of_other_puzzles(self, options: EvalOptions, path: Path, config: GridConfig) -> str | None:
        """What to know of a model's card where other puzzles were evaluated than its own."""
        own = config.data.test_data
        if not shipped.holds(path) or own is None or options.data == own or own.is_file():
            return None
        if not (scores := shipped.card(path).get("Scores", "").rstrip(".")):
            return None
        return (
            f"The scores on the card of {path.stem!r} are of other {self.task.noun}s, those of "
            f"{own.name}: {scores}. The two kinds differ, and so may the figures."
        )

    def solve(self, arguments: list[str]) -> int:
        """Answer puzzles from the command line; exit status 1 if an answer is not valid."""
        options = self.options(SolveOptions, arguments, "solve")
        with result_alone() if options.json is not None else contextlib.nullcontext():
            return self._solve(options)

    def _solve(self, options: SolveOptions) -> int:
        puzzles = self._typed(options.puzzles)
        side = math.isqrt(len(puzzles[0].question))
        path, model, config, steps, caution = self._sized(options, side)
        # The counts are of the trained size and solver, and say nothing of others.
        known = bands(path) if caution is None and options.solver is None else []
        called = self._called(path) if caution is None else shipped.called(path)
        print(wrapped(f"Solving with {called}"))
        if caution is not None:  # before what may take long
            print(wrapped(caution), flush=True)
        x, _ = self.task.encode(puzzles, config)
        found = self._answers(model, x, steps)
        valid = self.task.is_valid(x, found.classes, config).tolist()
        for row, ok in enumerate(valid):
            classes = found.classes[row].tolist()
            print(self.task.show(x[row].tolist(), classes))
            if len(classes) <= LINE:
                print(self.task.line([c + self.task.first_symbol for c in classes]))
            effort = f"{found.num_steps[row]} solver steps, residual {found.residual[row]:.1e}"
            if model.solving is None:
                effort = "one pass without a solver"
            print(wrapped(f"{effort}: {self.task.verdict if ok else f'NOT {self.task.verdict}'}"))
            residual = found.residual[row].item()
            if band := band_of(known, residual):
                print(wrapped(band.sentence(residual, self.task.noun)))
            print()
        print(wrapped(self.task.legend), end="\n" if self.task.legend else "")
        if len(valid) > 1:
            print(f"{sum(valid)} of {len(valid)} answers: {self.task.verdict}.")
        if options.draw is not None and model.solving is not None:
            options.draw.mkdir(parents=True, exist_ok=True)
            assert steps is not None
            frames = trajectory(model, x[-1], steps)
            for picture in self.task.draw(puzzles[-1], frames, config, options.draw):
                print(f"Drawn: {picture}")
        if options.json is not None:
            from tasks.puzzles.solving import answers

            told = answers(self.task, config, x, found, known, caution is None)
            records = [answer.record() for answer in told]
            result = {"task": self.task.name, "model": str(path), "answers": records}
            print_result(result, options.json)
        return 0 if all(valid) else 1

    def _typed(self, texts: tuple[str, ...]) -> list[Any]:
        """The puzzles that texts hold or name, all of one size."""
        puzzles = []
        for number, text in enumerate(texts, 1):
            try:
                puzzles += self.task.parse_typed(text)
            except ValueError as error:
                if len(texts) == 1:
                    raise
                raise ValueError(f"Argument {number} of `solve`: {error}") from error
        if not puzzles:
            where = f" in {', '.join(map(repr, texts))}" if texts else ""
            raise ValueError(
                f"There is no {self.task.noun}{where}. Name one, or a file with one per line."
            )
        sides = {math.isqrt(len(puzzle.question)) for puzzle in puzzles}
        if len(sides) > 1:
            sizes = " and ".join(f"{side}x{side}" for side in sorted(sides))
            raise ValueError(
                f"All {self.task.noun}s of one call must be of one size: got {sizes}. Solve each "
                "size in a call of its own."
            )
        return puzzles

    def _answers(self, model: Any, x: torch.Tensor, steps: int | None) -> Predictions:
        """What a model answers; of many puzzles, with a bar."""
        on_cpu = next(model.parameters()).device.type == "cpu"
        parts = x.split(TOGETHER if on_cpu else BATCH)
        if len(parts) == 1:
            return solve_batch(model, x, max_steps=steps)[0]
        from tasks.reports.logger import ProgressBar

        found = []
        with ProgressBar(verb="Solving") as bar:
            bar.begin(f"{len(x)} {self.task.noun}s", len(x))
            for rows in parts:
                found.append(solve_batch(model, rows, max_steps=steps)[0])
                bar.advance(len(rows))
        return Predictions.join(found)

    def _called(self, path: Path) -> str:
        """How `solve` names its model: with its last score in training, if that is known."""
        share = last_score(path)
        score = "" if share is None else f", {share:.0%} of held-out {self.task.noun}s right"
        return shipped.called(path) + score

    def export(self, arguments: list[str]) -> int:
        """Write a program with a fixed budget of steps."""
        from tasks.export import write_program

        options = self.options(ExportOptions, arguments, "export")
        _, model, config, steps = self.trained(options)
        x = torch.tensor([self.task.question(self.task.example(config), config)] * 2)
        about = {"task": self.task.name, "max_steps": steps, "config": config.to_json()}
        write_program(model, x, steps, options.file, about)
        budget = "" if steps is None else f" and {steps} steps"
        print(f"Written: {options.file}, for grids of {x.shape[1]} cells{budget}.")
        return 0

    def convert(self, arguments: list[str]) -> int:
        """Make a checkpoint of released weights."""
        from tasks.puzzles.convert import convert

        options = self.options(ConvertOptions, arguments, "convert")
        folder = convert(self.task, self.preset(options.preset), options)
        print(f"Checkpoint: {folder}. What next:")
        print(f"  {self.program} eval --checkpoint {shlex.quote(str(folder))} --data FILE")
        return 0
