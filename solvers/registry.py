"""The registry of names, for solvers and backward modes."""

import dataclasses
import difflib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from solvers.base import FixedPointSolver
from solvers.lazy import load

T = TypeVar("T")
C = TypeVar("C", bound=type)


class UnknownName(ValueError):
    """Raised when nothing is registered under a name."""


# All of them, so that a function of plain numbers and strings can reach one.
_registries: list["Registry[Any]"] = []


class Registry(Generic[T]):
    """Map names to frozen dataclasses; the error for an unknown name lists the known ones.

    A name that is not registered is looked up among the entry points of installed packages. A
    package can thus add a class by two lines in its `pyproject.toml`, imported on first use:

        [project.entry-points."attractor_models.solvers"]
        mine = "my_package.my_module:Mine"

    Args:
        kind: What it holds, for error messages, such as "solver".
        base: Class that every entry must derive from.
        group: Entry points are those of "attractor_models.<group>".
    """

    def __init__(self, kind: str, base: type[T], group: str):
        self.kind = kind
        self.number = len(_registries)
        _registries.append(self)
        self.base = base
        self.group = f"attractor_models.{group}"
        # A class, or the place of one that is declared but not yet imported: see `solvers.lazy`.
        self.entries: dict[str, type[T] | str] = {}
        # Entries with default options, as far as they were asked for.
        self.built: dict[str, T] = {}
        # Entries that need a package which is not installed, with the name of that package.
        self.absent: dict[str, tuple[type[T] | str, str]] = {}

    def declare(self, places: dict[str, str], needs: str | None = None) -> None:
        """Add classes that are imported when they are asked for.

        Args:
            places: For each name, where its class is: "package.module:Class".
            needs: See `register`.
        """
        for name, place in places.items():
            self._add(name, place, needs)

    def register(self, name: str, needs: str | None = None) -> Callable[[C], C]:
        """Decorate a class to add it under `name`.

        A class with the module and qualified name of the registered one replaces it, so that a
        notebook cell may be run again and a module reloaded.

        Args:
            name: The name to register.
            needs: A package that the class requires. While it is not installed, the name is not
                listed, and asking for it raises an error that says what to install.

        Raises:
            TypeError: The class does not derive from the base, or lacks one of its methods.
            ValueError: The name is taken by another class.
        """

        def add(given: C) -> C:
            cls: Any = given
            if not (isinstance(cls, type) and issubclass(cls, self.base)):
                raise TypeError(f"A {self.kind} must derive from {self.base.__name__}: got {cls}.")
            missing = sorted(getattr(cls, "__abstractmethods__", ()))
            if missing:
                raise TypeError(f"{cls.__name__} must define {', '.join(missing)}.")
            taken = self.entries.get(name) or self.absent.get(name, (None,))[0]
            if taken is not None and _full_name(_loaded(taken)) != _full_name(cls):
                held = f"{name!r} is taken by {_full_name(_loaded(taken))}"
                raise ValueError(f"The {self.kind} name {held}: choose another.")
            self._add(name, cls, needs)
            return given

        return add

    def _add(self, name: str, entry: type[T] | str, needs: str | None) -> None:
        self.entries.pop(name, None)
        self.built.pop(name, None)
        self.absent.pop(name, None)
        if needs and importlib.util.find_spec(needs) is None:
            self.absent[name] = entry, needs
        else:
            self.entries[name] = entry

    def names(self) -> list[str]:
        """Registered names and those of entry points, sorted; it imports none of them."""
        installed = importlib.metadata.entry_points(group=self.group).names
        return sorted({*self.entries, *installed} - {*self.absent})

    def __contains__(self, name: str) -> bool:
        """Whether `name` can be built. Loads an entry point of that name, if there is one."""
        if name not in self.entries and name not in self.absent:
            for point in importlib.metadata.entry_points(group=self.group, name=name):
                loaded = point.load()
                # Importing it may have registered it already, by a decorator.
                if name not in self.entries and name not in self.absent:
                    self.register(name)(loaded)
        return name in self.entries

    def classes(self) -> dict[str, type[T]]:
        """The class of each registered name; imports all of them."""
        return {name: _loaded(entry) for name, entry in self.entries.items()}

    def get(self, name: str, **options: Any) -> T:
        """Build the entry `name` with `options`.

        Raises:
            ValueError: Unknown name or option; the message lists what exists.
            ImportError: The entry needs a package that is not installed.
        """
        known = name in self
        if name in self.absent:
            package = self.absent[name][1]
            raise ImportError(
                f"The {self.kind} {name!r} needs {package}, which is not installed. Run `pip "
                f"install {package}`, or choose from: {', '.join(self.names())}."
            )
        if not known:
            message = unknown(self.kind, name, self.names(), "Registered")
            if not message.endswith("?"):
                message += (
                    f" Your own {self.kind} is known once its module is imported: in a command, by "
                    "`--import MODULE`."
                )
            raise UnknownName(message)
        cls: Any = _loaded(self.entries[name])
        allowed = [field.name for field in dataclasses.fields(cls) if field.init]
        for option in options:
            if option not in allowed:
                raise ValueError(unknown(f"option of {name!r},", option, allowed, "Options"))
        return cls(**options)

    def resolve(self, given: "str | T") -> T:
        """Turn a name into an object with default options; pass an object through."""
        if isinstance(given, str):
            _build(self.number, given)
            return self.built[given]
        if isinstance(given, self.base):
            return given
        cls: Any = given
        of_ours = isinstance(cls, type) and issubclass(cls, self.base)
        hint = f" Call the class: `{cls.__name__}()`." if of_ours else ""
        raise TypeError(
            f"Expected a {self.kind} name or a {self.base.__name__} instance: got {given!r}."
            f"{hint} Registered: {', '.join(self.names())}."
        )


def _loaded(entry: type[T] | str) -> type[T]:
    found: Any = load(entry) if isinstance(entry, str) else entry
    return found


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def unknown(kind: str, name: str, known: list[str], listing: str) -> str:
    """Build the message for an unknown name, with the known ones and the closest of them."""
    close = difflib.get_close_matches(str(name)[:100], known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown {kind} {repr(name)[:100]}. {listing}: {', '.join(known)}.{hint}"


LINEAR: Registry[FixedPointSolver] = Registry("linear solver", FixedPointSolver, "linear_solvers")
register_linear = LINEAR.register
linear_names = LINEAR.names

SOLVERS: Registry[FixedPointSolver] = Registry("solver", FixedPointSolver, "solvers")
register = SOLVERS.register
names = SOLVERS.names
get_solver = SOLVERS.get


def _build(number: int, name: str) -> bool:
    """Build the entry `name` of a registry with default options, unless this has been done."""
    registry = _registries[number]
    if name not in registry.built:
        registry.built[name] = registry.get(name)
    return True


# Dynamo calls this while it traces, as it cannot trace imports.
_build._dynamo_marked_constant = True  # type: ignore[attr-defined]
