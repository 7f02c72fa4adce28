"""The command line: `python -m tasks.lm [train|eval|generate|internalise|plan] ...`."""

import sys

from tasks.lm.commands import LanguageCommands

main = LanguageCommands().run

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
