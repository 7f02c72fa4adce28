"""The command line: `python -m tasks.lm [train|eval|generate|internalise|plan] ...`."""

import sys

from tasks.common.device import keep_freed_memory
from tasks.lm.commands import LanguageCommands


def main(arguments: list[str]) -> int:
    """Run a command."""
    return LanguageCommands().run(arguments)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
