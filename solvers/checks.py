"""Checks. Each raises an error that names what came and what is allowed."""

import difflib
import inspect
import math
import re
from typing import Any, Self

from solvers.torch_internals import version_of
from solvers.types import Flat


def check_at_least_0(name: str, value: Any) -> None:
    """Raise a ValueError unless an option is a finite number of at least 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}` must be finite and at least 0, got {value!r}.")


def check_integer(name: str, value: Any, least: int) -> None:
    """Raise a ValueError unless an option is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")


def check_counts(max_steps: int, batch_dims: int) -> None:
    """Raise a ValueError unless `max_steps` and `batch_dims` are integers of at least 0."""
    check_integer("max_steps", max_steps, 0)
    check_integer("batch_dims", batch_dims, 0)


def check_flag(name: str, value: Any) -> None:
    """Raise a ValueError unless an option is True or False; a string would count as True."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, got {value!r}.")


def check_callable(name: str, value: Any) -> None:
    """Raise a TypeError unless an argument is a function or a module; a class only makes one."""
    what = "a module" if name == "backbone" else "a function of the state and the args"
    if isinstance(value, type):
        raise TypeError(
            f"`{name}` must be {what}: got the class {value.__name__}. Create an object of it: "
            f"`{value.__name__}(...)`."
        )
    if not callable(value):
        raise TypeError(f"`{name}` must be {what}: got {type(value).__name__}.")


def check_history(history: int) -> None:
    """Raise a ValueError unless `history` is an integer of at least 1."""
    check_integer("history", history, 1)


def check_damping(damping: float) -> None:
    """Raise a ValueError unless `damping` lies in [0, 1)."""
    if not (isinstance(damping, int | float) and 0 <= damping < 1):
        raise ValueError(
            f"`damping` must lie in [0, 1), got {damping!r}. It weighs the old iterate: use 0 "
            "for the undamped map."
        )


def check_unchanged(y: Flat, version: int) -> None:
    """Raise a ValueError if a point was written into since it had this version."""
    if version_of(y) != version:
        raise ValueError(
            "`f` wrote into its input, or into a tensor that it returned before. Return a new "
            "tensor: drop `inplace=True`, `out=` and methods such as `mul_`."
        )


class KeywordOptions:
    """Base of dataclasses whose options are keywords: an error says which one was meant.

    It is a `__new__`, not a metaclass or an `__init__`, so that copies, pickles,
    `dataclasses.replace` and signatures remain those of a plain dataclass.
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Check the names of the options; `__init__` checks their values."""
        if args or not options.keys() <= cls.__dataclass_fields__.keys():  # type: ignore[attr-defined]
            _check_call(cls, args, options)
        return super().__new__(cls)


def _check_call(cls: type, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Raise a TypeError for what a class that takes nothing but keywords does not take.

    Any other class, such as one with an `__init__` of its own, has the errors of Python.
    """
    _, *parameters = inspect.signature(cls.__init__).parameters.values()
    if any(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters):
        return
    names = [parameter.name for parameter in parameters]
    listing = f"Options: {', '.join(names)}." if names else "It has no options."
    for name in options:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"`{cls.__name__}` has no option {name!r}. {listing}{hint}")
    if not args:
        return
    if not names:
        raise TypeError(f"`{cls.__name__}` takes no arguments: got {repr(args[0])[:100]}.")
    # The first option that is declared with the type that came, or else the first one.
    kind = re.compile(rf"\b{type(args[0]).__name__}\b")
    alike = [p.name for p in parameters if kind.search(str(p.annotation))]
    raise TypeError(
        f"`{cls.__name__}` takes its options by keyword, such as "
        f"`{cls.__name__}({[*alike, *names][0]}={repr(args[0])[:100]})`. {listing}"
    )
