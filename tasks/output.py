"""What a command prints: tables for people on a terminal, one line of JSON for programs in a pipe.

Where the standard output is not a terminal, it receives the result alone, as JSON; all else that a
command prints goes to the standard error. So `eval | jq` works, and a terminal shows no JSON.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

# The path that stands for the standard output.
STDOUT = Path("-")

# The standard output of commands under way, which print to the standard error meanwhile.
_results: list[TextIO] = []


@contextlib.contextmanager
def result_alone() -> Iterator[None]:
    """Keep the standard output for the result, unless it is a terminal."""
    if is_terminal(sys.stdout):
        yield
        return
    _results.append(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _results.pop()


def print_result(result: dict[str, Any], path: Path | None = None) -> None:
    """Print a result as one line of JSON, but on a terminal, and write it to a file.

    Args:
        result: JSON values.
        path: The file, if any; "-" prints the line on a terminal as well.
    """
    line = json.dumps(result)
    if path is not None and path != STDOUT:
        path.write_text(line + "\n")
    out = _results[-1] if _results else sys.stdout
    if is_terminal(out) and path != STDOUT:
        return
    try:
        print(line, file=out, flush=True)
    except BrokenPipeError:  # whoever read it has gone, as `head` does
        with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), out.fileno())


def is_terminal(stream: TextIO) -> bool:
    """Whether a person sees what is written there; not where it is closed."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def visible(text: str, stream: TextIO | None = None) -> str:
    r"""Text whose control characters a terminal shows, as `\x1b`, instead of obeying them.

    Args:
        text: The text; line feeds and tabs in it stay.
        stream: Where it is written; by default the standard output. Text for a file or a pipe
            stays as it is.
    """
    if not is_terminal(sys.stdout if stream is None else stream):
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
