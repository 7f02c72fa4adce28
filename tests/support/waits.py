"""Count how often a program waits for its device: by what it waits for, and by line of code."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWN = str(ROOT / "tests")
# What copies data to the device; all other waits read something from it.
UPLOAD = "to device"


class Waits(Counter[tuple[str, str]]):
    """Waits by kind and by line, such as ("value", "solvers/status.py:88").

    The kinds are "value" for a number that Python reads, "to cpu" and "to device" for a tensor that
    is copied, "synchronize", and otherwise an operation whose result has a shape that depends on
    values: for `x[mask]`, "nonzero".
    """

    @property
    def reads(self) -> int:
        """How often a value or a shape was read from the device."""
        return self.total() - self.uploads

    @property
    def uploads(self) -> int:
        """How often data were copied to the device while the program waited."""
        return sum(count for (kind, _), count in self.items() if kind == UPLOAD)


_open: list[Waits] = []


@contextlib.contextmanager
def count_waits() -> Iterator[Waits]:
    """Count until the end of the block, in all threads."""
    waits = Waits()
    _open.append(waits)
    try:
        yield waits
    finally:
        # By identity: counters are equal as long as they have counted the same.
        _open[:] = [other for other in _open if other is not waits]


def note(kind: str, count: int = 1) -> None:
    """Count waits of the line that is running now; the device calls this."""
    if not _open or not count:
        return
    line = _line()
    for waits in _open:
        waits[kind, line] += count


def _line() -> str:
    """The innermost line of this repository, outside its tests."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(ROOT)) and not path.startswith(OWN):
            return f"{Path(path).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
