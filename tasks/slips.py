"""Slips in the arguments of a command, told before torch is loaded.

What the commands of a task take is written down in `help/options.json` of its package, by
`tests/support/help_pages.py`. What takes more than these lists to be seen, such as a number out of
its range, is told by the command itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.arguments import (
    HELP,
    Takes,
    find_preset,
    given,
    left,
    refuse_bare_preset,
    refuse_foreign,
    refuse_renamed,
    refuse_rest,
    require_all,
    require_values,
    take,
    unknown,
)

FILE = "options.json"


class Command(NamedTuple):
    """What one command takes.

    Attributes:
        options: What each of its own options takes, by all names that the option has.
        positional: Whether it takes arguments that are no options.
        elsewhere: See `tasks.arguments.refuse_rest`.
        required: See `tasks.arguments.require_all`.
        preset: Whether it takes `--preset`.
        configures: Whether it takes all options of a configuration.
    """

    options: dict[str, Takes]
    positional: bool
    elsewhere: dict[str, str]
    required: list[str]
    preset: bool
    configures: bool


class Options(NamedTuple):
    """What the commands of a task take.

    Attributes:
        commands: Each command.
        presets: The kind of model of each preset.
        default: The preset that is taken if none is named.
        kinds: The options of a configuration, for each kind of model.
    """

    commands: dict[str, Command]
    presets: dict[str, str]
    default: str
    kinds: dict[str, dict[str, Takes]]

    def to_json(self) -> str:
        """Undo `read`."""
        whole = self._asdict()
        whole["kinds"] = {kind: _written(options) for kind, options in self.kinds.items()}
        whole["commands"] = {
            name: {**command._asdict(), "options": _written(command.options)}
            for name, command in self.commands.items()
        }
        return json.dumps(whole, indent=1) + "\n"


def read(path: Path) -> Options:
    """The options of a task from their file."""
    whole: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    commands = {
        name: Command(**{**command, "options": _taking(command["options"])})
        for name, command in whole["commands"].items()
    }
    kinds = {kind: _taking(options) for kind, options in whole["kinds"].items()}
    return Options(commands, whole["presets"], whole["default"], kinds)


def _taking(options: Mapping[str, str]) -> dict[str, Takes]:
    return {name: Takes.read(text) for name, text in options.items()}


def _written(options: Mapping[str, Takes]) -> dict[str, str]:
    return {name: takes.written() for name, takes in options.items()}


def refuse(
    options: Options,
    program: str,
    arguments: list[str],
    questions: Callable[[Sequence[str]], None] | None = None,
) -> None:
    """Check the arguments of a command line.

    Args:
        options: What its commands take.
        program: How it is called, such as "python -m tasks.sudoku".
        arguments: Those after it.
        questions: Checks the arguments of `solve` that are no options.

    Raises:
        ValueError: There is a slip.
    """
    if "--" in arguments or not set(HELP).isdisjoint(arguments):
        return
    module: str | None = ""
    while module is not None:
        arguments, module = take(arguments, "--import")
    refuse_renamed(arguments)
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else "train"
    if name not in options.commands:
        raise ValueError(unknown("command", name, list(options.commands), "Commands"))
    command, rest = options.commands[name], arguments[named:]
    if "resume" in command.options and "resume" in given(rest):
        return  # takes hardly any other options, and the command says so
    rest, kind = _without_preset(options, command, rest)
    known = command.options
    if command.configures:
        own = options.kinds[kind]
        refuse_foreign([_positive(each, own) for each in given(rest)], kind, options.kinds)
        known = {"model": Takes("text"), **own, **known}
    require_values(rest, known)
    over = left(rest, known)
    values = [each for each in over if not each.startswith("--")]
    if command.positional:
        over = [each for each in over if each.startswith("--")]
    refuse_rest(over, known, f"{program} {name}", command.elsewhere)
    require_all(rest, known, command.required, f"{program} {name}")
    if name == "solve" and questions is not None:
        questions(values)


def _without_preset(
    options: Options, command: Command, arguments: list[str]
) -> tuple[list[str], str]:
    """The arguments without those that choose the kind of model, and that kind."""
    if not command.preset:
        return arguments, options.presets[options.default]
    arguments, name = take(arguments, "--preset")
    if name is None and "resume" in command.options:
        refuse_bare_preset(arguments, options.presets)
    found, kind = find_preset(name or options.default, options.presets, options.kinds)
    kind = kind or options.presets[found]
    if command.configures:
        arguments, model = take(arguments, "--model")
        kind = kind if model is None else model
        if kind not in options.kinds:
            raise ValueError(unknown("model", kind, list(options.kinds), "Models"))
    return arguments, kind


def _positive(name: str, options: Mapping[str, Takes]) -> str:
    return name if name in options else name.removeprefix("no_")
