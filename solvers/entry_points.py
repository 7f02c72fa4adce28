"""What installed packages name as entry points in the groups of this library."""

from importlib.metadata import EntryPoint
from typing import Any


class BrokenEntryPoint(ValueError):
    """Raised when an installed package names an entry point that is of no use."""


def load_entry_point(point: EntryPoint, kind: str) -> Any:
    """Import what an entry point names.

    Args:
        point: Of an installed package.
        kind: What it is to be, for the message, such as "solver".

    Raises:
        BrokenEntryPoint: Its module cannot be imported, or has no such name.
    """
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise broken(point, kind, f"cannot be loaded: {error}") from error


def broken(point: EntryPoint, kind: str, why: str) -> BrokenEntryPoint:
    """The error that says which package names an entry point, and what is wrong with it.

    Args:
        point: Of an installed package.
        kind: What it is to be, such as "solver".
        why: The end of the sentence.
    """
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "an installed package"
    return BrokenEntryPoint(
        f"The {kind} {point.name!r}, which {package} names as {point.value!r}, {why.rstrip('.')}. "
        f"Mend the entry point in the `pyproject.toml` of that package and install it again, or "
        f"uninstall it."
    )
