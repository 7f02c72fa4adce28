"""Every command that README and docs show is one that the real command lines take.

A command of a task is parsed by that task's own command line, up to where work would begin; what
each of them then does is tested in `tests/tasks`. In a command as shown, `a|b` are alternatives,
`[--flag X]` may be left out, and `...` and single capitals stand for a value.
"""

import functools
import importlib
import itertools
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import tyro

import tasks.checkpoints.manager
import tasks.experiments.compare
import tasks.lm.experiment
import tasks.lm.shard_batches
import tasks.planning.report
from solvers.registry import SOLVERS
from tasks import cli as command_line
from tasks.__main__ import main as without_a_task
from tasks.training.options import flag

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "tasks").rglob("*.md")), ROOT / "results/README.md",
]  # fmt: skip
TASKS = ("sudoku", "maze", "lm")
COMMANDS = {
    name.rpartition(".")[2]: importlib.import_module(f"{name}.__main__").main
    for name in (*(f"tasks.{task}" for task in TASKS), "examples.queens")
}
NAMES = "train|eval|solve|serve|export|plan|compare|generate|internalise|loops|harness|prepare"
PROGRAMS = ("python", ".venv/bin/python", "torchrun", "make", ".venv/bin/pip", "pip", "curl",
            "tensorboard", "apt-get")  # fmt: skip
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


MY_SOLVERS = """
from dataclasses import dataclass
import solvers
@solvers.register("heavy_ball")
@dataclass(frozen=True, kw_only=True)
class HeavyBall(solvers.FixedPointSolver):
    def init(self, y): return None
    def step(self, y, fy, carry): return fy, carry
"""


class Parsed(BaseException):
    """The command line has taken its arguments."""


def shown(page: Path) -> Iterator[str]:
    """Commands of a page: lines of its blocks, and code within its sentences."""
    text = page.read_text()
    for language, block in FENCE.findall(text):
        if language in ("", "console", "bash", "sh"):
            lines = block.replace("\\\n", " ").splitlines()
            is_shell = any(line.startswith(PROGRAMS) for line in lines)
            yield from (line.removeprefix("$ ") for line in lines if is_shell and line.strip())
    for code in INLINE.findall(FENCE.sub("", text)):
        code = " ".join(code.split())
        if code.split(" ")[0] in PROGRAMS or re.match(rf"({NAMES}) .*--|--\w", code):
            yield code


def spelled_out(command: str) -> Iterator[list[str]]:
    """The commands that a line stands for, with values for what it leaves open."""
    parts = []
    for word in shlex.split(re.sub(r" \[(--[^\]]*)\]", r" \1", command), comments=True):
        word = {"...": "file.safetensors", "FILE.pt2": "file.pt2"}.get(word, word)
        word = re.sub(r"^[A-Z]$", "1", word)
        parts.append(word.split("|") if re.fullmatch(r"[\w|]+", word) else [word])
    yield from (list(words) for words in itertools.product(*parts))


SHOWN = sorted({(line, str(page.relative_to(ROOT))) for page in PAGES for line in shown(page)})


# Those that end soon: what a run would cost, and answers of the trained model of the package.
SHORT = [
    (line, page)
    for line, page in SHOWN
    if re.match(r"python -m tasks\.\w+ plan |python -m tasks\.sudoku solve ", line)
    and "--shards" not in line  # which are prepared before
]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stop where arguments have been taken; tables of experiments, where their runs are known."""
    parse = tyro.cli

    def cli(kind: Any, **options: Any) -> Any:
        found = parse(kind, **options)
        # Of a configuration and of a comparison, more is checked than the flags alone.
        # These are options of a comparison of language models, and of a plan.
        later = hasattr(kind, "ablations") or hasattr(kind, "gpus")
        _, rest = found
        if rest or later or kind.__name__ == "Config":
            return found
        raise Parsed

    def stop(*_: Any, **__: Any) -> None:
        raise Parsed

    # Modules of the reader's own, as the pages call them.
    (tmp_path / "my_solvers.py").write_text(MY_SOLVERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(SOLVERS, "entries", dict(SOLVERS.entries))
    monkeypatch.delitem(sys.modules, "my_solvers", raising=False)
    monkeypatch.setattr(tyro, "cli", cli)
    monkeypatch.setattr(command_line, "choose_device", stop)
    monkeypatch.setattr(tasks.checkpoints.manager, "load_newest", stop)
    monkeypatch.setattr(tasks.planning.report, "report", stop)
    monkeypatch.setattr(tasks.lm.shard_batches, "open_folder", stop)
    monkeypatch.setattr(tasks.experiments.compare, "search_and_repeat", stop)
    monkeypatch.chdir(tmp_path)


@functools.cache  # many commands are on several pages
def takes(task: str, *arguments: str) -> bool:
    """Whether a task's command line takes these arguments."""
    try:
        return COMMANDS[task](list(arguments)) == 0
    except Parsed:
        return True
    except SystemExit as stop:  # help, or what the parser of flags refuses
        return stop.code == 0


def command_line_of(task: str) -> Any:
    """The class or object that has the configurations of a task."""
    if task == "lm":
        return importlib.import_module("tasks.lm.commands").LanguageTask
    return getattr(importlib.import_module(f"tasks.{task}.task"), f"{task.capitalize()}Task")


@functools.cache
def flags(task: str, command: str) -> set[str]:
    """Of a command, by its help; those that come before its options are not in there."""
    page = StringIO()
    with redirect_stdout(page):
        takes(task, command, "--help")
        if command in ("train", "plan"):  # whose help shows the options of one kind of model
            config = command_line_of(task).config_type
            print(*(flag(name) for kind in config.kinds for name in config.hints(kind)))
    return {"--help", "--preset", "--resume", *re.findall(r"--[a-z][a-z-]*", page.getvalue())}


def check(words: list[str], page: str) -> bool:
    """Whether a command is one of ours, or of a tool that we know of."""
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return all(word in targets or word.startswith("ARGS=") for word in words[1:])
    if words[0] in ("pip", ".venv/bin/pip"):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        wanted = re.findall(r"[\[,]([\w-]+)(?=[\],])", " ".join(words))
        return set(wanted) <= set(extras["optional-dependencies"])
    if words[0] in ("curl", "tensorboard", "apt-get"):
        return True
    if re.fullmatch(NAMES, words[0]) or words[0].startswith("--"):
        # A part of a command: of the page's own task, or of any.
        own = [task for task in TASKS if page.startswith(f"tasks/{task}/")] or TASKS
        names = [words[0]] if re.fullmatch(NAMES, words[0]) else NAMES.split("|")
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        return any(given <= flags(task, name) for task in own for name in names)
    if "-m" not in words:
        script = words[0] == "python" and (ROOT / words[1]).is_file()
        return script or len(words) == 1  # or a program that is named
    module = words[words.index("-m") + 1]
    rest = words[words.index("-m") + 2 :]
    if (name := module.rpartition(".")[2]) in COMMANDS:
        return takes(name, *rest)
    if module == "tasks":
        with redirect_stdout(StringIO()):
            return without_a_task(rest) == 0
    if module == "pytest":
        return all((ROOT / word).exists() for word in rest if word.startswith("tests/"))
    return module in ("venv", "pip") or (ROOT / f"{module.replace('.', '/')}.py").exists()


@pytest.mark.parametrize(("command", "page"), SHOWN)
@pytest.mark.usefixtures("no_work")
@pytest.mark.filterwarnings("ignore")
def test_a_command_that_is_shown_is_taken(command: str, page: str) -> None:
    for words in spelled_out(command):
        assert check(words, page), words


@pytest.mark.slow
@pytest.mark.parametrize(("command", "page"), SHORT)
def test_a_short_command_runs(
    command: str, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--checkpoint", "extreme"]
    for words in spelled_out(command):
        arguments = words[3:] + (model if words[3] == "solve" else [])
        assert COMMANDS[words[2].removeprefix("tasks.")](arguments) == 0


@pytest.mark.usefixtures("no_work")
def test_commands_are_found_and_wrong_ones_refused() -> None:
    lines = {line for line, _ in SHOWN}
    assert (
        "python -m tasks.sudoku export sudoku.pt2                   # runs with torch alone"
        in lines
    )
    assert len([line for line in lines if "-m tasks." in line]) > 40
    for wrong in (
        "python -m tasks.sudoku train --presett tiny",
        "python -m tasks.lm compare --ablations injectoin=concat",
        "python -m tasks.maze exports maze.pt2",
        "eval --dept 3",
        "--no-such-flag 3",
        "make tset",
        "pip install -e .[exmaples]",
        "python -m examples.nothing",
        "python -m examples.queens train --queens 3",
    ):
        assert not check(wrong.split(), "README.md"), wrong
