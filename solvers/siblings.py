"""Detect that another project's package hides one of ours, whose names are common words."""

from importlib.util import find_spec
from pathlib import Path


def check(package: str, *names: str) -> None:
    """Raise an ImportError unless Python finds the named packages next to the calling one.

    Args:
        package: The `__init__.py` of the calling package.
        names: Names of the packages that it imports.
    """
    ours = Path(package).parents[1]
    for name in names:
        spec = find_spec(name)
        found = None if spec is None or spec.origin is None else Path(spec.origin)
        if found != ours / name / "__init__.py":
            raise ImportError(
                f"`{name}` of attractor-models, {ours / name}, is hidden: Python finds "
                f"{found or 'no package'} under that name. Rename that file or its folder, or keep "
                "it out of `sys.path`: a script's own folder, or with `python -m` the working "
                "directory, comes first. If it belongs to an installed distribution, use an "
                "environment without that.",
                name=name,
            )
