"""Explain an option that was passed to a call but belongs to its solver or backward mode."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from solvers.registry import Registry
from solvers.torch_internals import skip_this_frame

P = ParamSpec("P")
T = TypeVar("T")


def options_of(**registries: Registry[Any]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function whose keywords of these names take an entry of a registry.

    The signature does not change. The error for an unknown keyword says which entry of a registry
    has that option.
    """

    def decorate(call: Callable[P, T]) -> Callable[P, T]:
        parameters = inspect.signature(call).parameters
        named = {name for name, each in parameters.items() if each.kind != each.VAR_POSITIONAL}

        @functools.wraps(call)
        def explained(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return call(*args, **kwargs)
            except TypeError as error:
                unknown = [name for name in kwargs if name not in named]
                if not unknown:
                    raise
                given: dict[str, Any] = kwargs
                chosen = {key: given.get(key, parameters[key].default) for key in registries}
                name, options = unknown[0], _options(registries)
                if name not in {*options, *parameters}:  # the call's own names come first
                    match = functools.partial(difflib.get_close_matches, name, n=1)
                    (name,) = match(named) or match(options) or (name,)
                if name in named:
                    advice = f"Did you mean {name!r}?"
                else:
                    found = _advice(name, given[unknown[0]], registries, chosen)
                    advice = found or f"It is no option here.{_by_position(parameters)}"
                raise TypeError(f"{error}. {advice}") from None

        skip_this_frame(explained)
        return explained

    return decorate


def _by_position(parameters: Mapping[str, inspect.Parameter]) -> str:
    """Say of a call that passes its `*args` on to a map how the map gets its arguments."""
    if "args" not in parameters:
        return ""
    return " What the map takes besides y follows `y0` without a keyword."


def _options(registries: dict[str, Registry[Any]]) -> set[str]:
    """Return the names of the options of all registered classes."""
    entries = [cls for registry in registries.values() for cls in registry.classes().values()]
    return {field.name for cls in entries for field in dataclasses.fields(cls)}


def _advice(
    option: str, value: Any, registries: dict[str, Registry[Any]], chosen: dict[str, Any]
) -> str | None:
    """Name an entry that has the option: the one in use if it has, else the first one."""
    for key, registry in registries.items():
        entries = registry.classes()
        used = [n for n, cls in entries.items() if chosen[key] == n or type(chosen[key]) is cls]
        for name in [*used, *registry.names()]:
            if name in entries and option in {f.name for f in dataclasses.fields(entries[name])}:
                getter = f"get_{key}({name!r}, {option}={value!r})"
                return f"`{option}` is an option of the {registry.kind}: {key}={getter}."
    return None
