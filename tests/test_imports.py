"""What importing this library and using a part of it loads."""

import ast
import importlib
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from forks import Run

import implicit
import models
import solvers
from implicit.registry import MODES
from solvers import FixedPointSolver
from solvers.lazy import load
from solvers.registry import LINEAR, SOLVERS, Registry
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.sudoku.config import PRESETS

PACKAGES = [solvers, implicit, models]

GRADIENT = """
import torch, implicit
x = torch.ones(2, 3, requires_grad=True)
implicit.fixed_point(lambda y, x: 0.5 * y + x, torch.zeros(2, 3), x).value.sum().backward()
"""
CODES = {
    "solvers": "import solvers",
    "a solver": "import solvers; 'squarem' in solvers.names(); solvers.get_solver('squarem')",
    "exact gradient": GRADIENT,
    "phantom gradient": GRADIENT.replace("), x)", "), x, backward='phantom')"),
    "grid model": "import models; models.GridAttractor",
    "commands": "".join(
        f"from tasks.{task} import __main__ as m; m.commands()\n"
        for task in ("lm", "maze", "sudoku")
    ),
    "names": "".join(
        f"import {package.__name__} as p; assert set(p.__all__) <= set(dir(p))\n"
        for package in PACKAGES
    ),
}

LOADED = """
heavy = {
    "matplotlib", "scipy", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torchdeq",
    "transformers",
}
import json, sys
packages = ("solvers", "implicit", "models")
ours = [name for name in sys.modules if name.split(".")[0] in packages]
print(json.dumps([sorted(heavy & set(sys.modules)), sorted(ours)]))
"""


@pytest.fixture(scope="module")
def loaded(new_process: Run) -> dict[str, list[str]]:
    """Our modules that a process without any of them has loaded after running each code."""
    found = {}
    for name, code in CODES.items():
        ended = new_process(f"{code}\n{LOADED}")
        assert ended.returncode == 0, ended.stderr
        heavy, found[name] = json.loads(ended.stdout)
        assert heavy == []
    return found


# Loading more is a decision: it slows every start down, and is more to read.
@pytest.mark.parametrize(
    ("name", "most"),
    [("solvers", 27), ("exact gradient", 42), ("phantom gradient", 40), ("grid model", 43)],
)
def test_no_more_is_loaded_than_is_used(name: str, most: int, loaded: dict[str, list[str]]) -> None:
    assert len(loaded[name]) <= most


SOLVE = """
import runpy, sys
try:
    runpy.run_module("tasks.sudoku", run_name="__main__", alter_sys=True)
except SystemExit as ended:
    packages = ("solvers", "implicit", "models", "tasks")
    ours = [name for name in sys.modules if name.split(".")[0] in packages]
    print(ended.code, *sorted(ours))
"""


def test_solve_loads_nothing_of_other_commands(tmp_path: Path, new_process: Run) -> None:
    """What a reader of `solve` meets: a number that grows is a decision, as above."""
    config = PRESETS["tiny"].changed(width=8)
    weights = {f"module.{name}": value for name, value in config.build().state_dict().items()}
    path = tmp_path / "model.safetensors"
    Checkpoint({"average": weights}, {"task": "sudoku", "config": config.to_json()}).save(path)
    arguments = ["solve", "1234341221.343.1", "--checkpoint", str(path)]
    ended = new_process(SOLVE, *arguments)
    assert ended.stderr == ""
    code, *modules = ended.stdout.splitlines()[-1].split()
    assert code in ("0", "1")  # the weights are random
    assert "solver steps, residual" in ended.stdout
    assert len(modules) <= 77, modules  # a preset of Sudoku is solved by `anderson`


@pytest.mark.parametrize("package", PACKAGES)
def test_star_import_and_dir_have_every_public_name(
    package: ModuleType, loaded: dict[str, list[str]]
) -> None:
    """Also where nothing has been used yet, which the process of `loaded` asserts."""
    space: dict[str, object] = {}
    exec(f"from {package.__name__} import *", space)
    assert set(package.__all__) <= set(space)


@pytest.mark.parametrize("task", ["sudoku", "maze", "lm"])
def test_a_task_shows_only_what_is_to_be_used(task: str) -> None:
    """Also when its modules have been loaded, and without what only annotations need."""
    package = importlib.import_module(f"tasks.{task}")
    importlib.import_module(f"tasks.{task}.config")
    assert dir(package) == package.__all__ == ["load"]
    space: dict[str, object] = {}
    exec(f"from tasks.{task} import *", space)
    assert space["load"] is package.load


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


def test_a_solver_is_loaded_by_its_name(loaded: dict[str, list[str]]) -> None:
    more = set(loaded["a solver"]) - set(loaded["solvers"])
    assert more == {"solvers.methods", "solvers.methods.squarem"}


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
