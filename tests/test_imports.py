"""What importing this library and using a part of it loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import implicit
import models
import solvers
from implicit.registry import MODES
from solvers import FixedPointSolver
from solvers.lazy import load
from solvers.registry import LINEAR, SOLVERS, Registry

PACKAGES = [solvers, implicit, models]

GRADIENT = """
import torch, implicit
x = torch.ones(2, 3, requires_grad=True)
implicit.fixed_point(lambda y, x: 0.5 * y + x, torch.zeros(2, 3), x).value.sum().backward()
"""

COUNT = """
import sys
heavy = {"scipy", "torchdeq", "matplotlib", "transformers"} & set(sys.modules)
print(*sorted(heavy))
print(*sorted(n for n in sys.modules if n.split(".")[0] in ("solvers", "implicit", "models")))
"""


def loaded_by(code: str) -> list[str]:
    """Our modules that a fresh process has loaded after running this code."""
    command = [sys.executable, "-c", code + COUNT]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    heavy, ours = ended.stdout.splitlines()
    assert heavy == ""
    return ours.split()


# Loading more is a decision: it slows every start down, and is more to read.
@pytest.mark.parametrize(
    ("code", "most"),
    [
        ("import solvers", 24),
        (GRADIENT, 43),
        (GRADIENT.replace("), x)", "), x, backward='phantom')"), 37),
        ("import models; models.GridAttractor", 40),
    ],
    ids=["solvers", "exact gradient", "phantom gradient", "grid model"],
)
def test_no_more_is_loaded_than_is_used(code: str, most: int) -> None:
    assert len(loaded_by(code)) <= most


@pytest.mark.parametrize("package", PACKAGES)
def test_star_import_and_dir_have_every_public_name(package: ModuleType) -> None:
    space: dict[str, object] = {}
    exec(f"from {package.__name__} import *", space)
    assert set(package.__all__) <= set(space)
    code = f"import {package.__name__} as p; print(*(set(p.__all__) - set(dir(p))));"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""


@pytest.mark.parametrize("package", PACKAGES)
def test_an_attribute_that_does_not_exist_is_named(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match=f"^module '{package.__name__}' has no attribute 'no"):
        package.nothing  # noqa: B018


def imported_for_type_checkers(package: ModuleType) -> Iterator[tuple[str, str]]:
    """Each name that a type checker sees, and its place."""
    assert package.__file__ is not None
    for node in ast.walk(ast.parse(Path(package.__file__).read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                for alias in line.names:
                    inner = f"{line.module}.{alias.name}"
                    module = line.module == package.__name__ and find_spec(inner) is not None
                    place = inner if module else f"{line.module}:{alias.name}"
                    yield alias.asname or alias.name, place


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_what_there_is(package: ModuleType) -> None:
    seen = dict(imported_for_type_checkers(package))
    assert seen
    assert set(seen) <= set(package.__all__)
    for name, place in seen.items():
        assert getattr(package, name) is load(place)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_submodule_takes_the_place_of_a_lazy_attribute(package: ModuleType) -> None:
    for name, place in imported_for_type_checkers(package):
        inner = f"{package.__name__}.{name}"
        assert place == inner or find_spec(inner) is None


def test_a_solver_is_loaded_by_its_name() -> None:
    code = "import solvers; assert 'squarem' in solvers.names(); solvers.get_solver('squarem')"
    before, after = loaded_by("import solvers"), loaded_by(code)
    assert set(after) - set(before) == {"solvers.methods", "solvers.methods.squarem"}


def test_names_hide_no_import_that_points_up() -> None:
    """Attributes agree with the imports for type checkers, which `lint-imports` reads."""
    for registry, package in ((SOLVERS, "solvers"), (LINEAR, "solvers"), (MODES, "implicit")):
        places = [entry for entry in registry.entries.values() if isinstance(entry, str)]
        assert places
        assert {place.partition(":")[0].split(".")[0] for place in places} == {package}


@pytest.mark.parametrize("registry", [SOLVERS, LINEAR], ids=["solvers", "linear solvers"])
def test_the_name_of_a_class_of_ours_stays_taken(registry: Registry[FixedPointSolver]) -> None:
    name, cls = next(iter(registry.classes().items()))
    with pytest.raises(ValueError, match=f"'{name}' is taken by {cls.__module__}"):
        registry.register(name)(solvers.Picard)
