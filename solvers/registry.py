"""Names to objects, at the edge: one small registry for solvers and backward modes alike."""

import dataclasses
import difflib
import importlib.util
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from solvers.base import FixedPointSolver

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """Maps names to frozen dataclasses and explains itself when a name is unknown.

    Args:
        kind: What it holds, for error messages, such as "solver".
        base: Class that every entry must derive from.
    """

    def __init__(self, kind: str, base: type[T]):
        self.kind = kind
        self.base = base
        self.entries: dict[str, type[T]] = {}
        self.absent: dict[str, str] = {}

    def register(self, name: str, needs: str | None = None) -> Callable[[C], C]:
        """Decorate a class to add it under `name`.

        Args:
            name: What it is called from now on.
            needs: A package to be installed by hand. While it is missing, the name is not
                listed, and asking for it says what to install.

        Raises:
            TypeError: The class does not derive from the base, or lacks one of its methods.
            ValueError: The name is taken.
        """

        def add(given: C) -> C:
            cls: Any = given
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                raise TypeError(f"A {self.kind} must derive from {self.base.__name__}: got {cls}.")
            missing = sorted(getattr(cls, "__abstractmethods__", ()))
            if missing:
                raise TypeError(f"{cls.__name__} must define {', '.join(missing)}.")
            if name in self.entries or name in self.absent:
                taken = self.absent.get(name) or self.entries[name].__qualname__
                raise ValueError(
                    f"The {self.kind} name {name!r} is taken by {taken}: choose another."
                )
            if needs and importlib.util.find_spec(needs) is None:
                self.absent[name] = needs
            else:
                self.entries[name] = cls
            return given

        return add

    def names(self) -> list[str]:
        """Registered names, sorted."""
        return sorted(self.entries)

    def get(self, name: str, **options: Any) -> T:
        """Build the entry `name` with `options`.

        Raises:
            ValueError: Unknown name or option; the message lists what exists.
            ImportError: The entry needs a package that is not installed.
        """
        if name in self.absent:
            package = self.absent[name]
            raise ImportError(
                f"The {self.kind} {name!r} needs {package}, which is not installed. Run `pip "
                f"install {package}`, or choose from: {', '.join(self.names())}."
            )
        if name not in self.entries:
            raise ValueError(unknown(self.kind, name, self.names(), "Registered"))
        cls: Any = self.entries[name]
        allowed = [field.name for field in dataclasses.fields(cls) if field.init]
        for option in options:
            if option not in allowed:
                raise ValueError(unknown(f"option of {name!r},", option, allowed, "Options"))
        return cls(**options)

    def resolve(self, given: "str | T") -> T:
        """Turn a name into an object with default options; pass an object through."""
        if isinstance(given, str):
            return self.get(given)
        if isinstance(given, self.base):
            return given
        raise TypeError(
            f"Expected a {self.kind} name or a {self.base.__name__} instance: got {given!r}. "
            f"Registered: {', '.join(self.names())}."
        )


def unknown(kind: str, name: str, known: list[str], listing: str) -> str:
    """Say that `name` is unknown, what exists, and what was probably meant."""
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown {kind} {name!r}. {listing}: {', '.join(known)}.{hint}"


LINEAR: Registry[FixedPointSolver] = Registry("linear solver", FixedPointSolver)
register_linear = LINEAR.register
linear_names = LINEAR.names

SOLVERS: Registry[FixedPointSolver] = Registry("solver", FixedPointSolver)
register = SOLVERS.register
names = SOLVERS.names
get_solver = SOLVERS.get
