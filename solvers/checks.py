"""Checks. Each raises an error that names what came and what is allowed."""

import math
from typing import Any

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
    """Raise a TypeError unless an argument can be called."""
    if not callable(value):
        raise TypeError(
            f"`{name}` must be a function of the state and the args: got {type(value).__name__}."
        )


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
