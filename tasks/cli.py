"""The part of the command line that all tasks share: dispatch, presets and errors.

A command imports what other commands do without when it is called, so that each starts at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import os
import re
import shlex
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from solvers.registry import unknown
from tasks import shipped
from tasks.device import choose_device
from tasks.flags import parse, parse_config, parse_some, refuse_renamed, take
from tasks.output import (
    plain_warnings,
    print_error,
    print_result,
    result_alone,
    say,
    wrapped,
    write_nowhere,
)
from tasks.runs import locate, program, read_config

if TYPE_CHECKING:
    from tasks.checkpoints.checkpoint import Checkpoint
    from tasks.experiments.jobs import SearchOptions
    from tasks.experiments.run import Experiment
    from tasks.folders import FolderLock

T = TypeVar("T")

# Commands that end with a result in numbers; see `tasks.output`.
WITH_RESULT = ("train", "eval", "plan", "internalise", "loops", "harness")

# How names of published presets end: with a number of parameters.
PUBLISHED = re.compile(r"\d[kmb]$")


@dataclasses.dataclass(frozen=True)
class Start:
    """The run that a training command starts or continues.

    Attributes:
        preset: Its name.
        config: The options.
        folder: Receives what the run writes.
        checkpoint: Where an earlier run stopped; None for a new one.
        lock: Keeps others out of the folder; None in all processes but the first.
    """

    preset: str
    config: Any
    folder: Path
    checkpoint: Checkpoint | None
    lock: FolderLock | None


class CommandLine(ABC):
    """The command line of one task: `python -m tasks.<name> [command] ...`.

    Args:
        task: Has `name`, `config_type`, `presets` and `default_preset`.
    """

    def __init__(self, task: Any):
        self.task = task
        self.modules: list[str] = []

    @property
    def program(self) -> str:
        """The command that users type, without its arguments."""
        return program(self.task)

    @property
    @abstractmethod
    def purpose(self) -> str:
        """The first line of `--help` without a command."""

    @property
    @abstractmethod
    def calls(self) -> dict[str, str]:
        """What may follow `program`, or "(none)", and what it does, in a few words."""

    @property
    def usage(self) -> str:
        """The text of `--help` without a command."""
        from tasks.planning.preset_list import listing

        presets = self.task.presets
        own = {name: presets[name] for name in presets if not PUBLISHED.search(name)}
        published = [name for name in presets if name not in own]
        rows = [f"  {call:<21}{text}\n" for call, text in self.calls.items()]
        models = ", ".join(shipped.names(self.task.name))
        ends = f"\nModels that come with the package, for `--checkpoint`: {models}.\n"
        return (
            f"{self.purpose}\n\nusage: {self.program} [COMMAND] ...\n\n{''.join(rows)}\n"
            "Each command's --help lists its flags. All take `--import MODULE`: a module\n"
            "of yours that registers solvers or backward modes.\n\n"
            f"{listing(own, published, self.task.default_preset)}{ends if models else ''}"
        )

    def options(self, kind: type[T], arguments: list[str], command: str) -> T:
        """Parse the flags of one of the commands; see `flags.parse`."""
        models = shipped.names(self.task.name)
        return parse(kind, arguments, f"{self.program} {command}", models)

    @property
    @abstractmethod
    def experiment(self) -> Experiment:
        """What the runs of this task have of their own."""

    @abstractmethod
    def comparison(self) -> tuple[type[SearchOptions], Callable[[str, Any, Any], object]]:
        """The options of the command `compare`, and what trains the models that they name.

        It is called as train(preset, its configuration, options), and prints one table.
        """

    # Commands that the processes of `torchrun` can share.
    joint: ClassVar[tuple[str, ...]] = ("train", "compare")

    @abstractmethod
    def commands(self) -> dict[str, Callable[[list[str]], int]]:
        """The commands by name; "train" is the default."""

    def run(self, arguments: list[str]) -> int:
        """Run a command; errors of the caller become one line and exit status 2."""
        commands = self.commands()
        if arguments[:1] in (["-h"], ["--help"], ["help"]):
            print(self.usage)
            return 0
        try:
            arguments, self.modules = import_modules(arguments)
            refuse_renamed(arguments)
            named = bool(arguments) and not arguments[0].startswith("-")
            command = arguments[0] if named else "train"
            if command not in commands:
                raise ValueError(unknown("command", command, list(commands), "Commands"))
            if _num_processes() > 1 and command not in self.joint:
                raise ValueError(
                    f"`torchrun` can run {', '.join(self.joint)}: start `{command}` as one process."
                )
            rest = arguments[1:] if named else arguments
            shows_help = not {"-h", "--help"}.isdisjoint(rest)
            with_result = command in WITH_RESULT and not shows_help
            alone = result_alone() if with_result else contextlib.nullcontext()
            with plain_warnings(), _together(), alone:
                return commands[command](rest)
        except KeyboardInterrupt:
            print("\nStopped at once. What was saved before is as it was.", file=sys.stderr)
            return 130
        except BrokenPipeError:
            write_nowhere(sys.stdout)
            return 128 + signal.SIGPIPE  # as programs end that do not catch it
        except (ValueError, OSError) as error:
            print_error(error)
            return 2

    def preset(self, name: str) -> Any:
        """A configuration by name, such as "770m"; "deq-770m" has that model instead.

        Where a preset of that model is among them, as "sudoku-extreme-trm-7m" is for
        "trm-sudoku-extreme-7m", it is meant: its recipe and size are those of its name.

        Raises:
            ValueError: There is none of this name.
        """
        presets = self.task.presets
        if name in presets:
            return presets[name]
        model, _, rest = name.partition("-")
        kind, _, size = rest.rpartition("-")
        if (own := f"{kind}-{model}-{size}") in presets:
            return presets[own]
        if rest in presets and model in self.task.config_type.kinds:
            return presets[rest].changed(model=model)
        others = [kind for kind in self.task.config_type.kinds if kind != "attractor"]
        raise ValueError(
            f"{unknown('preset', name, list(presets), 'Presets')} With another model: "
            f"`{others[0]}-{next(iter(presets))}` and the like, of {', '.join(others)}."
        )

    def _take_preset(self, arguments: list[str]) -> tuple[list[str], str, Any]:
        """The other arguments, the preset that these name, and its configuration."""
        arguments, name = take(arguments, "--preset")
        name = name or self.task.default_preset
        return arguments, name, self.preset(name)

    @abstractmethod
    def require_source(self, config: Any, name: str) -> None:
        """Check the file or folder that an option of `config.data` names, as training would.

        Raises:
            ValueError: It is not there, or damaged.
        """

    def _require_named(self, config: Any, preset: Any) -> None:
        """Check what a planned run names, but for the files of its preset, which few may have."""
        if config.train.weights is not None:
            locate(self.task.name, config.train.weights)
        for name in config.data.paths:
            if getattr(config.data, name) not in (None, getattr(preset.data, name, None)):
                self.require_source(config, name)

    def start(self, arguments: list[str]) -> Start:
        """Prepare a new run from a preset and flags, or continue one from its checkpoint."""
        from tasks.checkpoints.manager import load_newest
        from tasks.distributed import Group
        from tasks.experiments.folder import lock_resumed, new_folder

        group = Group.current()
        arguments, resume = take(arguments, "--resume")
        arguments, name = take(arguments, "--preset")
        if resume is not None:
            # Only options that do not change results: how processes share the work and save.
            changed = {}
            for option in ("parallel", "checkpoints"):
                arguments, value = take(arguments, f"--{option}")
                changed |= {option: value} if value is not None else {}
            if arguments or name:
                raise ValueError(
                    "`--resume` takes its options from the checkpoint, but for `--parallel` and "
                    "`--checkpoints`: drop others."
                )
            path = Path(resume)
            shipped.refuse_resume(self.task.name, path)
            lock = lock_resumed(path) if group.first else None
            # One after the other: the first may rename a damaged file.
            checkpoint = group.in_turn(lambda: load_newest(path))
            config = read_config(self.task, checkpoint).changed(**changed)
            config.data.require_recorded()
            return Start(checkpoint.value("preset"), config, path.parent, checkpoint, lock)
        if name is None and arguments and not arguments[0].startswith("-"):
            for meant in difflib.get_close_matches(arguments[0], self.task.presets, n=1):
                raise ValueError(
                    f"Unexpected argument {arguments[0]!r}. Did you mean `--preset {meant}`?"
                )
        name = name or self.task.default_preset
        default = self.preset(name)
        own = [name for name in self.task.presets if not PUBLISHED.search(name)]
        models = shipped.names(self.task.name)
        top = {
            "preset": f"{', '.join(own)} ({self.task.default_preset}), or one of the paper: see "
            "`python -m tasks reproduce --list`",
            "resume": "Checkpoint of a run to go on with; takes no other flags",
        }
        config = parse_config(default, arguments, f"{self.program} train", top, models=models)
        choose_device(config.train.device)
        same = config.model.name == default.model.name
        label = name if same else f"{name}-{config.model.name}"
        lock = new_folder(config.train.out, self.task.name, label) if group.first else None
        folder = group.broadcast(lock.folder if lock is not None else None)
        return Start(name, config, folder, None, lock)

    def train(self, arguments: list[str]) -> int:
        """Train, evaluate, draw, and print the result; if interrupted, say how to go on."""
        from tasks.experiments.run import run
        from tasks.training.stop_signal import Interrupted

        try:
            start = self.start(arguments)
            with start.lock or contextlib.nullcontext():
                result = run(
                    self.experiment, start.preset, start.config, start.folder, start.checkpoint
                )
            if start.lock is not None:  # of several processes, the first
                self._show_end(start, result)
        except Interrupted as stop:
            command = self.program
            if (size := _num_processes()) > 1:
                command = command.replace("python", f"torchrun --nproc-per-node {size}", 1)
            flags = "".join(f" --import {module}" for module in self.modules)
            with contextlib.suppress(OSError):  # the terminal may be closed
                print("\nStopped; nothing is lost. Go on with:")
                print(f"  {command} train --resume {stop.path}{flags}")
            return 130
        return 0

    def _show_end(self, start: Start, result: dict[str, Any]) -> None:
        """Print the result of a run, where it is, and what can be done with it."""
        place = f"Checkpoint, log and pictures are in {start.folder}, on one page in report.html."
        print(wrapped(f"{place} What next:"))
        for command in self.next_steps(start.config, shlex.quote(str(start.folder))):
            print(f"  {command}")
        print(f"  tensorboard --logdir {shlex.quote(str(start.folder / 'tensorboard'))}")
        print_result(result)

    def next_steps(self, config: Any, folder: str) -> list[str]:
        """Commands that use a run, with real paths.

        Args:
            config: The options of the run.
            folder: Its folder, quoted for a shell.
        """
        return [f"{self.program} eval --checkpoint {folder}"]

    def compare(self, arguments: list[str]) -> int:
        """Train several models with equal parameters and budget, and print one table."""
        from tasks.training.stop_signal import Interrupted

        arguments, name, base = self._take_preset(arguments)
        kind, train_models = self.comparison()
        options = self.options(kind, arguments, "compare")
        options = dataclasses.replace(options, modules=tuple(self.modules))
        try:
            train_models(name, base, options)
        except Interrupted:
            with contextlib.suppress(OSError):  # the terminal may be closed
                print(
                    f"\nStopped; nothing is lost. The same command goes on: {self.program} compare"
                )
            return 130
        return 0

    def plan(self, arguments: list[str]) -> int:
        """Print the memory, time and cost that a run will need, without building the model."""
        from tasks.planning.report import PlanOptions, report, show

        arguments, name, default = self._take_preset(arguments)
        program = f"{self.program} plan"
        options, rest = parse_some(PlanOptions, arguments, program)
        names = [field.name for field in dataclasses.fields(PlanOptions)]
        config = parse_config(default, rest, program, others=names)
        self._require_named(config, default)
        say(f"Planning {config.model.name}, preset {name}: a training step is traced.")
        found = report(config, options)
        show(f"{config.model.name}, {self.program} --preset {name}", found)
        result = {"task": self.task.name, "preset": name, "plan": found}
        print_result(result | {"config": config.to_json()}, options.json)
        return 0


def _together() -> contextlib.AbstractContextManager[Any]:
    """Join the other processes of `torchrun`, if there are any."""
    if _num_processes() == 1:
        return contextlib.nullcontext()
    from tasks import distributed

    return distributed.init()


def _num_processes() -> int:
    """How many processes `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def import_modules(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Remove every `--import MODULE` from the arguments, and import the modules.

    They register solvers or backward modes, whose names the other flags then take.

    Raises:
        ValueError: There is no such module.
    """
    modules = []
    while True:
        arguments, name = take(arguments, "--import")
        if name is None:
            return arguments, modules
        absent = ValueError(
            f"`--import` found no module {name!r}. Give its name as in Python, such as "
            "`my_package.my_solvers`, not a file; it must lie in the working directory, in "
            "PYTHONPATH or in an installed package."
        )
        if not all(part.isidentifier() for part in name.split(".")):
            raise absent
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise  # One that the module imports.
            raise absent from error
        modules.append(name)
