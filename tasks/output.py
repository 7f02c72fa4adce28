"""What a command prints: tables for people on a terminal, one line of JSON for programs in a pipe.

Where the standard output is not a terminal, it receives the result alone, as JSON; all else that a
command prints goes to the standard error. So `eval | jq` works, and a terminal shows no JSON.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from torch import Tensor

# The path that stands for the standard output.
STDOUT = Path("-")

# Of a terminal that does not say how wide it is.
COLUMNS = 80

DEVIATIONS = 1.959964  # of a normal distribution: 95 % lie within

# The standard output of commands under way, which print to the standard error meanwhile.
_results: list[TextIO] = []


class Progress:
    """How far a command is that takes long; this one shows it nowhere. See `ProgressBar`."""

    def begin(self, name: str, total: int) -> None:
        """A part of the work begins, of so many steps, which take about equally long."""

    def advance(self, count: int = 1) -> None:
        """So many more steps of this part are done."""


SILENT = Progress()


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
        path: The file, if any, whose folder is made if need be; "-" prints the line on a terminal
            as well.
    """
    line = json.dumps(result)
    out = _results[-1] if _results else sys.stdout
    if path == STDOUT or not is_terminal(out):
        try:
            print(line, file=out, flush=True)
        except BrokenPipeError:
            write_nowhere(out)
    if path is not None and path != STDOUT:  # last, so that an error loses nothing
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line + "\n")


def decimal(value: Tensor) -> float:
    """A number as the shortest decimal that rounds to it in the type it was computed in.

    Python writes the number of float32 that is next to 0.1 as 0.10000000149011612, as if it were
    known to so many digits.

    Args:
        value: One number, of any real type.
    """
    return decimals(value[None])[0]


def decimals(values: Tensor) -> list[float]:
    """As `decimal`, for a tensor of shape (numbers,)."""
    import torch  # here, since `--help` answers without it

    values = values.detach().cpu()
    array = (values if values.dtype == torch.float64 else values.float()).numpy()
    return [float(str(each)) for each in array]


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Print warnings as `warning: ...`, without the line of code that raised them."""
    before, warnings.formatwarning = warnings.formatwarning, _plain
    try:
        yield
    finally:
        warnings.formatwarning = before


def _plain(message: Warning | str, *_: object, **__: object) -> str:
    return wrapped(f"warning: {message}", sys.stderr) + "\n"


def write_nowhere(out: TextIO) -> None:
    """Let go of a stream whose reader has gone, as `head` does, so that closing it is no error."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
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


def say(text: str) -> None:
    """Tell a person on a terminal, on the standard error, what a command is doing."""
    if is_terminal(sys.stderr):
        print(wrapped(text, sys.stderr), file=sys.stderr, flush=True)


def print_error(error: object) -> None:
    """Tell the user what was wrong, on the standard error."""
    print(wrapped(f"error: {error}", sys.stderr), file=sys.stderr)


def wrapped(text: str, stream: TextIO | None = None) -> str:
    """Prose in lines of the terminal that shows it, broken between words; elsewhere as it is.

    Args:
        text: The prose.
        stream: Where it is written; by default the standard output.
    """
    out = sys.stdout if stream is None else stream
    if not is_terminal(out):
        return text
    try:
        width = os.get_terminal_size(out.fileno()).columns or COLUMNS
    except (OSError, ValueError):
        width = COLUMNS
    lines = (
        textwrap.wrap(
            line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        for line in text.split("\n")
    )
    return "\n".join("\n".join(parts) for parts in lines)


def wilson(share: float, count: int) -> tuple[float, float]:
    """The interval of 95 % for the probability behind a share of `count` independent trials.

    Unlike share plus or minus its standard error it stays within 0 and 1, and has a width where all
    trials or none succeeded.

    References:
        E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22
        (1927).

    Example:
        >>> low, high = wilson(1.0, 100)
        >>> f"{low:.3f} to {high:.3f}"
        '0.963 to 1.000'
    """
    if count < 1:
        return 0.0, 1.0
    square = DEVIATIONS**2 / count
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def with_interval(share: float, count: int) -> str:
    """A share in percent with its interval, as in `74.1% (71.3 to 76.7)`."""
    low, high = wilson(share, count)
    return f"{share:.1%} ({100 * low:.1f} to {100 * high:.1f})"
