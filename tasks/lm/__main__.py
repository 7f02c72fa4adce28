"""The command line: `python -m tasks.lm [train|eval|generate|internalise|plan] ...`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tasks import entry

if TYPE_CHECKING:
    from tasks.cli import CommandLine


def commands() -> CommandLine:
    """The command line; what it is made of is loaded here, since `--help` does without."""
    from tasks.lm.commands import LanguageCommands

    return LanguageCommands()


def main(arguments: list[str]) -> int:
    """Run a command."""
    return entry.run("lm", commands, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
