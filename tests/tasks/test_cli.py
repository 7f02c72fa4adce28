"""Modules of the user, which add solvers and backward modes to every command."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from implicit.registry import MODES
from solvers.registry import SOLVERS
from tasks.cli import Start, import_modules
from tasks.puzzles.commands import Commands
from tasks.sudoku.__main__ import main
from tasks.training.stop_signal import Interrupted

ROOT = Path(__file__).parents[2]
MODULE = """
from dataclasses import dataclass
import implicit, solvers

@solvers.register("zigzag")
@dataclass(frozen=True, kw_only=True)
class Zigzag(solvers.FixedPointSolver):
    def init(self, y):
        return None

    def step(self, y, fy, carry):
        return fy, carry

@implicit.register("slope")
@dataclass(frozen=True, kw_only=True)
class Slope(implicit.JacobianFree):
    pass
"""
RUN = ["--preset", "tiny", "--train-puzzles", "60", "--test-puzzles", "8", "--steps", "2",
       "--width", "8", "--eval-max-steps", "4"]  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a module of the user; names that it registers are gone afterwards."""
    (tmp_path / "my_zigzag.py").write_text(MODULE)
    (tmp_path / "needs_more.py").write_text("import no_such_package_at_all\n")
    (tmp_path / "fails.py").write_text("raise ValueError('mine')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_zigzag", raising=False)
    for registry in (SOLVERS, MODES):
        monkeypatch.setattr(registry, "entries", dict(registry.entries))


def test_a_run_trains_and_is_evaluated_with_a_solver_of_the_users(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--import", "my_zigzag", "--solver", "zigzag", "--backward", "slope"]
    assert main(["train", *RUN, "--out", "run", *flags]) == 0
    config = json.loads(Path("run/result.json").read_text())["config"]
    assert (config["solve"]["solver"], config["solve"]["backward"]) == ("zigzag", "slope")
    checkpoint = ["--checkpoint", "run/checkpoint.safetensors"]
    assert main(["--import=my_zigzag", "eval", *checkpoint, "--quick"]) == 0
    # Another process, which has not imported the module.
    for registry in (SOLVERS, MODES):
        monkeypatch.setattr(registry, "entries", {
            k: v for k, v in registry.entries.items() if k not in ("zigzag", "slope")
        })  # fmt: skip
    capsys.readouterr()
    assert main(["eval", *checkpoint]) == 2
    said = capsys.readouterr().err
    assert "Unknown solver 'zigzag'" in said
    assert "`--import MODULE`" in said
    assert "Train again" not in said


@pytest.mark.slow
def test_as_a_command(tmp_path: Path) -> None:
    """The working directory is where Python looks for modules."""
    command = [sys.executable, "-m", "tasks.sudoku", "plan", "--preset", "tiny"]
    for flags, code, text in (
        (["--import", "my_zigzag"], 0, '"solver": "zigzag"'),
        ([], 2, "`--import MODULE`"),
    ):
        run = subprocess.run(
            [*command, "--solver", "zigzag", *flags], cwd=tmp_path, capture_output=True, text=True,
            check=False, env={"PYTHONPATH": str(ROOT), "PATH": "", "COLUMNS": "500"},
        )  # fmt: skip
        assert run.returncode == code, run.stderr
        assert text in run.stdout + run.stderr


@pytest.mark.parametrize("name", ["nowhere", "my_zigzag.py", "./my_zigzag", "my_zigzag.more", ""])
def test_a_module_that_is_not_there_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--import", name]) == 2
    assert f"error: `--import` found no module {name!r}. Give" in capsys.readouterr().err


def test_errors_of_the_module_itself_are_shown() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        main(["train", "--import", "needs_more"])
    with pytest.raises(ValueError, match=r"^mine$"):
        import_modules(["--import", "fails"])


def test_an_interrupted_run_says_what_to_import_when_it_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Commands, arguments: list[str]) -> Start:
        raise Interrupted(Path("run/checkpoint.safetensors"))

    monkeypatch.setattr(Commands, "start", interrupted)
    assert main(["--import", "my_zigzag", "--import", "json"]) == 130
    expected = "train --resume run/checkpoint.safetensors --import my_zigzag --import json\n"
    assert capsys.readouterr().err.endswith(expected)


def test_an_interruption_keeps_its_path_between_processes() -> None:
    stop = Interrupted(Path("run/checkpoint.safetensors"))
    for other in (pickle.loads(pickle.dumps(stop)), copy.deepcopy(stop)):
        assert other.path == stop.path
        assert str(other) == str(stop)


def test_several_modules_anywhere_among_the_arguments() -> None:
    given = ["--import", "json", "eval", "--max-steps", "3", "--import=math"]
    assert import_modules(given) == (["eval", "--max-steps", "3"], ["json", "math"])


def test_an_interrupted_command_leaves_the_standard_output_to_results(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Commands, arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Commands, "evaluate", interrupted)
    assert main(["eval"]) == 130
    assert capsys.readouterr() == ("", "\nStopped at once. What was saved before is as it was.\n")
