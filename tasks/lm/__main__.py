"""The command line: `python -m tasks.lm [train|eval|generate|internalise|plan] ...`."""

import sys

from tasks.lm.commands import LanguageCommands


def main(arguments: list[str]) -> int:
    """Run a command."""
    return LanguageCommands().run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
