"""The help pages and options of all commands, so that help and slips need not load torch.

Run as `python tests/support/help_pages.py` to write them anew after a change to an option.
"""

import contextlib
import importlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tasks import entry, slips
from tasks.arguments import Takes
from tasks.flags import accepted, required, taking, unnamed

TASKS = ("lm", "maze", "sudoku")
# Commands that take the options of a configuration.
CONFIGURED = ("train", "plan")
COLUMNS = "80"


def rendered() -> Iterator[tuple[Path, str]]:
    """Each page's file, and what it should hold."""
    plain = {"COLUMNS": COLUMNS, "NO_COLOR": "1", "TERM": "dumb"}
    with mock.patch.dict(os.environ, plain):
        for task in TASKS:
            commands = importlib.import_module(f"tasks.{task}.__main__").commands()
            folder = entry.help_folder(task)
            yield folder / slips.FILE, options(commands).to_json()
            yield folder / f"{entry.USAGE}.txt", commands.usage
            for name in commands.commands():
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
                    commands.run([name, "--help"])
                lines = [line.rstrip() for line in printed.getvalue().splitlines()]
                yield folder / f"{name}.txt", "\n".join(lines).strip("\n") + "\n"


def options(commands: Any) -> slips.Options:
    """What the commands of a task take."""
    task = commands.task
    return slips.Options(
        {name: _command(commands, name) for name in commands.commands()},
        {name: config.model.name for name, config in task.presets.items()},
        task.default_preset,
        {kind: taking(task.config_type.hints(kind)) for kind in task.config_type.kinds},
    )


class Parsed(Exception):
    """What a command asks the parser for is known."""


def _command(commands: Any, name: str) -> slips.Command:
    """What one command takes, from what it asks the parser for."""
    kinds: list[Any] = []
    top: dict[str, str] = {}
    preset = mock.Mock(return_value=([], "tiny", commands.preset("tiny")))

    def parse_some(kind: Any, *_: Any) -> Any:
        kinds.append(kind)
        if name != "plan":
            raise Parsed
        return mock.Mock(), []

    def parse_config(default: Any, arguments: Any, program: str, first: Any = (), **_: Any) -> Any:
        top.update(first)
        preset()
        raise Parsed

    with (
        mock.patch("tasks.flags.parse_some", parse_some),
        mock.patch("tasks.cli.parse_some", parse_some),
        mock.patch("tasks.cli.parse_config", parse_config),
        mock.patch.object(commands, "_take_preset", preset),
        contextlib.suppress(Parsed),
    ):
        commands.commands()[name]([])
    own = {key: Takes("text") for key in top}
    for kind in kinds:
        own |= accepted(kind)
    return slips.Command(
        own,
        any(unnamed(kind) for kind in kinds),
        {key: value for kind in kinds for key, value in getattr(kind, "elsewhere", {}).items()},
        [each for kind in kinds for each in required(kind)],
        preset.called,
        name in CONFIGURED,
    )


if __name__ == "__main__":
    for path, text in rendered():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
