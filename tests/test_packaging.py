"""What a user installs: complete, and found under its own names."""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import implicit
import models
import solvers
import tasks

ROOT = Path(__file__).parents[1]
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
