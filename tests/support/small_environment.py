"""A new environment that has some installed packages and no others, made without a download.

The packages are links to those of this environment, with their metadata. So pip installs a wheel
only if the packages that it asks for are among them, and a program finds nothing else.
"""

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement


def closure(requirements: Iterable[str], found: set[str] | None = None) -> set[str]:
    """The names of installed packages that requirements need, those of these packages included."""
    found = set() if found is None else found
    for text in requirements:
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        for extra in ("", *requirement.extras):
            if f"{name}[{extra}]" in found:
                continue
            found.add(f"{name}[{extra}]")
            asked = importlib.metadata.requires(name) or []
            needed = [Requirement(each) for each in asked]
            closure(
                [
                    f"{each.name}[{','.join(each.extras)}]" if each.extras else each.name
                    for each in needed
                    if (each.marker is None and not extra)
                    or (each.marker is not None and each.marker.evaluate({"extra": extra}))
                ],
                found,
            )
    return {name.partition("[")[0] for name in found}


class Environment:
    """A virtual environment with these packages.

    Args:
        folder: Where it is made.
        packages: Names of installed packages, whose requirements are not added.
    """

    def __init__(self, folder: Path, packages: Iterable[str]):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        self.site = Path(
            sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        )
        for package in packages:
            self.link(package)

    def link(self, package: str) -> None:
        """Add one package, without its requirements."""
        distribution = importlib.metadata.distribution(package)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            target = self.site / top
            if not target.exists():
                target.symlink_to(Path(str(distribution.locate_file(top))).resolve())

    def install(self, wheel: Path, extra: str = "") -> None:
        """Install a wheel with pip, which asks no index.

        Raises:
            AssertionError: A package that the wheel needs is not there.
        """
        what = f"{wheel}[{extra}]" if extra else str(wheel)
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install",
                   "--no-index", "--quiet", "--disable-pip-version-check", what]  # fmt: skip
        ended = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=self.site,
            env={k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))},
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run Python there, which does not see the working directory or any PYTHONPATH."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cwd / "cache")}
        return subprocess.run(
            [str(self.python), "-I", *arguments], cwd=cwd, env=environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
