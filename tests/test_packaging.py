"""What a user installs: complete, and found under its own names."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from small_environment import Environment, closure

import implicit
import models
import solvers
import tasks
from tasks.extras import EXTRAS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
PACKAGES = ["solvers", "implicit", "models", "tasks"]
# What is not in version control.
LEFT_OUT = shutil.ignore_patterns(
    ".*", "runs", "__pycache__", "*.egg-info", "build", "dist", "site", "shared"
)
BUILD = """
import sys
from setuptools import build_meta
_, folder = sys.argv  # which the builds change
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    source = shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    command = [sys.executable, "-c", BUILD, str(folder)]
    ended = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


def python(*arguments: str, cwd: Path, path: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_one_version() -> None:
    versions = {package.__version__ for package in (solvers, implicit, models, tasks)}
    assert versions == {"0.1.0"}


def test_wheel_is_typed_and_says_what_it_is(built: Path, tmp_path: Path) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        (metadata,) = [name for name in names if name.endswith("/METADATA")]
        fields = email.message_from_bytes(wheel.read(metadata))
        wheel.extractall(tmp_path / "installed")
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
        files = {file.relative_to(ROOT).as_posix() for file in (ROOT / package).rglob("*.py")}
        assert files <= set(names)
    assert "tasks/serving/page/index.html" in names
    assert "implicit/diagnostics/house.mplstyle" in names
    assert fields["Version"] == solvers.__version__
    assert fields["Author"]
    assert {"Homepage", "Issues", "Changelog", "Documentation"} <= {
        field.split(",")[0] for field in fields.get_all("Project-URL", [])
    }
    assert "Typing :: Typed" in fields.get_all("Classifier", [])
    code = "import solvers, tasks; print(solvers.__file__, tasks.__version__)"
    ended = python("-c", code, cwd=tmp_path, path=tmp_path / "installed")
    expected = f"{tmp_path / 'installed' / 'solvers' / '__init__.py'} {solvers.__version__}\n"
    assert ended.stdout == expected, ended.stderr


def test_core_adds_few_packages_to_those_of_torch() -> None:
    core = PROJECT["dependencies"]
    names = sorted(re.split(r"[<>=\[]", each)[0] for each in core)
    assert names == ["jaxtyping", "numpy", "scipy", "torch", "torchdeq"]
    added = closure(core) - closure(["torch"])
    assert len(added | {"attractor-models"}) <= 6, added


def test_every_extra_is_there_and_all_has_what_users_need() -> None:
    extras = PROJECT["optional-dependencies"]
    users = {"tasks", "lm", "lm-data", "lm-eval", "serve"}
    assert users | {"all"} <= set(extras)
    (everything,) = extras["all"]
    assert set(re.findall(r"[\w-]+", everything.partition("[")[2])) | {"tasks"} == users
    named = {
        package.replace("PIL", "pillow").replace("_", "-"): extra
        for package, extra in EXTRAS.items()
    }
    for extra in users:
        for requirement in extras[extra]:
            name = re.split(r"[<>=\[]", requirement)[0].replace("_", "-")
            assert name == "attractor-models" or named[name] == extra


@pytest.mark.slow
def test_a_wheel_works_where_nothing_else_is_installed(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    core = closure(PROJECT["dependencies"])
    environment = Environment(tmp_path / "venv", core)
    environment.install(wheel)
    code = "import implicit, models, tasks; print(implicit.__file__, implicit.backward_modes())"
    ended = environment.run("-c", code, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(str(environment.site / "implicit"))
    ended = environment.run("-m", "tasks.sudoku", "solve", PUZZLE, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: `python -m tasks.sudoku` needs the package `")
    assert ended.stderr.endswith("`pip install 'attractor-models[tasks]'`.\n")
    ended = environment.run("-c", "import tasks.maze; tasks.maze.load()", cwd=tmp_path)
    assert ended.stderr.splitlines()[-1].startswith(
        "ModuleNotFoundError: `tasks.maze.load` needs the"
    )
    for package in closure(PROJECT["optional-dependencies"]["tasks"]) - core:
        environment.link(package)
    environment.install(wheel, "tasks")
    ended = environment.run("-m", "tasks.sudoku", "solve", PUZZLE, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (
        "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
        in ended.stdout
    )
    tiny = ["--preset", "tiny", "--steps", "3", "--train-puzzles", "32", "--test-puzzles", "8"]
    ended = environment.run("-m", "tasks.sudoku", "train", *tiny, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "runs/sudoku/tiny/model.safetensors").is_file()


@pytest.mark.slow
def test_tests_run_from_the_source_distribution(built: Path, tmp_path: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as source:
        source.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    copied = {p.relative_to(built / "source") for p in (built / "source").rglob("*") if p.is_file()}
    unpacked = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    made = {p for p in copied if any(part.endswith(".egg-info") for part in p.parts)}
    assert {p for p in copied - made - unpacked if p.parts[0] != "build"} == set()
    chosen = [
        "tests/solvers/methods/test_picard.py",
        "tests/test_repository.py",
        "tests/models/test_grid.py",
    ]
    ended = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, cwd=folder, path=folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("hidden", "package", "module"),
    [
        ("solvers.py", "solvers", "implicit"),
        ("solvers/__init__.py", "solvers", "models"),
        ("implicit/__init__.py", "implicit", "models"),
        ("models/__init__.py", "models", "tasks.sudoku"),
        ("solvers.py", "solvers", "tasks.lm"),
    ],
)
def test_a_hidden_package_is_told_of(
    hidden: str, package: str, module: str, tmp_path: Path
) -> None:
    theirs = tmp_path / hidden
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("raise SystemExit('theirs is not run')\n")
    ended = python("-c", f"import {module}", cwd=tmp_path, path=ROOT)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: `{package}` of attractor-models, {ROOT / package}, is")
    assert f"Python finds {theirs} under that name. Rename that file" in last


def test_a_folder_that_is_no_package_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    ended = python("-c", "import tasks, models; models.Attractor", cwd=tmp_path, path=ROOT)
    assert ended.returncode == 0, ended.stderr
