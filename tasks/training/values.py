"""Values of options, which come from flags and from files: types and bounds."""

import reprlib
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

# The longest text and the largest whole number of an option.
MAX_TEXT, MAX_NUMBER = 4096, 2**63 - 1
WORDS = {int: "a whole number", float: "a number", str: "text", Path: "a path"}


def checked(name: str, value: Any, hint: Any) -> Any:
    """The value of an option, which must be of the option's type; files have paths as text.

    Raises:
        ValueError: It is of another type, no number, or larger than any sensible value.
    """
    allowed = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in allowed:
        if kind is Path and isinstance(value, str) and value:
            value = Path(value)
        if _fits(value, kind):
            return value
    choices = [repr(choice) for kind in allowed for choice in literal(kind)]
    words = [WORDS[kind] for kind in allowed if kind in WORDS]
    words += ["true or false"] * (bool in allowed)
    if choices:
        words.append(" or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}")
    words += ["none"] * (types.NoneType in allowed)
    got = repr(value[:80]) if isinstance(value, str) else reprlib.repr(value)
    if isinstance(value, (str, Path)) and len(str(value)) > MAX_TEXT:
        got += f", of {len(str(value)):,} characters (most: {MAX_TEXT:,})"
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        got += f" (most: {MAX_NUMBER:,})"
    raise ValueError(f"`{name}` must be {' or '.join(words)}, got {got}.")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type that is no union."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind is types.NoneType:
        return value is None
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if isinstance(value, int) and kind in (int, float):
        return abs(value) <= MAX_NUMBER
    if isinstance(value, float):
        return kind is float and value == value
    return isinstance(value, kind) and len(str(value)) <= MAX_TEXT and "\0" not in str(value)


def check_texts(name: str, value: Any) -> None:
    """Raise a TypeError unless an argument is a text or an iterable, perhaps one of texts."""
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        raise TypeError(
            f"`{name}` must be text, or an iterable of texts: got {type(value).__name__}."
        )


def literal(hint: Any) -> tuple[Any, ...]:
    """The choices of an option's type; none if it may have other values."""
    return () if isinstance(hint, types.UnionType) else get_args(hint)
