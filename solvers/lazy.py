"""Import the attributes of a package on first use, so that a program loads only what it needs.

A place is written as in the entry points of a distribution: "package.module:name", or
"package.module" for the module itself.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any


def load(place: str) -> Any:
    """Import the module of a place, and return what the place names."""
    module, _, name = place.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, name) if name else loaded


def attributes(
    package: str, places: dict[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package, as PEP 562 defines them for modules.

    Python calls a module's `__getattr__` for a name that the module does not have yet. Type
    checkers do not look into `places`: give them the same imports under `TYPE_CHECKING`.

    Args:
        package: Its `__name__`.
        places: The place of each attribute that is imported on first use. A function must not
            have the name of a submodule of the package, which would replace it once imported.
    """
    module = sys.modules[package]

    def getattribute(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = load(places[name])
        setattr(module, name, value)
        return value

    return getattribute, lambda: sorted({*vars(module), *places})
