"""How a command line begins: what is answered before torch is loaded, and missing packages."""

import re
from collections.abc import Callable
from importlib import import_module

import pytest
from forks import Run
from help_pages import TASKS, rendered

from examples.queens.task import QueensTask
from tasks import __version__, entry, shipped
from tasks.extras import advice
from tasks.puzzles.commands import Commands
from tasks.serving import serve


def failing(error: Exception) -> Callable[[], entry.Runnable]:
    def load() -> entry.Runnable:
        raise error

    return load


@pytest.mark.parametrize(
    ("module", "extra"),
    [("tyro", "tasks"), ("tensorboard.compat", "tasks"), ("tokenizers", "lm"),
     ("datasets.exceptions", "lm-data"), ("lm_eval", "lm-eval"), ("uvicorn", "serve")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(
    module: str, extra: str, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert entry.run("sudoku", failing(missing), ["eval"]) == 2
    package = module.partition(".")[0]
    assert capsys.readouterr().err == (
        f"error: `python -m tasks.sudoku` needs the package `{package}`, which is not installed: "
        f"install the extra with `pip install 'attractor-models[{extra}]'`.\n"
    )


def test_other_import_errors_stay_what_they_are() -> None:
    for error in (
        ModuleNotFoundError("No module named 'mine'", name="mine"),
        ImportError("cannot import name 'x' from 'rich'", name="rich"),
    ):
        assert advice(error, "This") is None
        with pytest.raises(ImportError, match=re.escape(str(error))):
            entry.run("sudoku", failing(error), ["eval"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run("lm", failing(AssertionError()), ["--version"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"attractor-models {__version__} (torch 2.")


def test_a_command_begins_without_torch(new_process: Run) -> None:
    """The process has torch, as all of them have here; none of our packages may ask for it."""
    code = (
        "import sys\n"
        "from tasks.sudoku.__main__ import main\n"
        "assert main(['--version']) == main(['--help']) == main(['train', '--help']) == 0\n"
        "ours = [n for n in sys.modules if n.split('.')[0] in ('solvers', 'models', 'tyro')]\n"
        "assert ours == [], ours\n"
    )
    ended = new_process(code)
    assert ended.returncode == 0, ended.stderr


def test_help_pages_are_those_of_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """If not: `PYTHONPATH=.:tests/support python tests/support/help_pages.py`."""
    pages = dict(rendered())
    assert len(pages) == sum(len(list(entry.help_folder(t).iterdir())) for t in TASKS)
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, path
    for task in TASKS:
        assert import_module(f"tasks.{task}.__main__").main(["eval", "--help"]) == 0
        assert capsys.readouterr().out == pages[entry.help_folder(task) / "eval.txt"]


@pytest.mark.parametrize(
    "arguments", [["eval", "--help", "--quick"], ["../maze/help/eval", "-h"], ["evil", "-h"], []]
)
def test_other_arguments_have_no_page(arguments: list[str]) -> None:
    assert entry.help_page("sudoku", arguments) is None


@pytest.mark.parametrize("task", TASKS)
def test_help_lists_presets_and_models_in_lines_of_a_terminal(task: str) -> None:
    presets = import_module(f"tasks.{task}.config").PRESETS
    page = (entry.help_folder(task) / "usage.txt").read_text(encoding="utf-8")
    assert max(map(len, page.splitlines())) <= 79
    assert set(presets) <= set(re.split(r"[\s,]+", page))
    for name in ("tiny", import_module(f"tasks.{task}.config").DEFAULT_PRESET):
        (line,) = re.findall(rf"^  {name} .*$", page, re.MULTILINE)
        parameters = sum(p.numel() for p in presets[name].build().parameters())
        assert f" {parameters:,} parameters, {presets[name].train.minutes:g} minutes" in line
    for command in ("eval", "export", "train", {"lm": "generate"}.get(task, "solve")):
        text = (entry.help_folder(task) / f"{command}.txt").read_text(encoding="utf-8")
        names = ", ".join(shipped.names(task))
        assert f"Those of the package: {names}" in " ".join(text.split()), command
        assert "\n  --import MODULE" in text[text.index("options\n") :]
        assert "--import MODULE:" not in text


def test_help_of_a_task_of_ones_own_promises_no_models_and_presets_of_the_paper() -> None:
    usage = Commands(QueensTask(), serve).usage
    assert "standard" in usage
    assert "paper" not in usage
    assert "Models that come with the package" not in usage


def test_help_calls_values_by_what_they_are() -> None:
    """No type of Python, such as `{None}|PATH`, and no `(default: None)`."""
    for file in (file for task in TASKS for file in entry.help_folder(task).iterdir()):
        text = file.read_text(encoding="utf-8")
        assert "{None}" not in text, file
        assert "(default:" not in text, file
        assert not re.search(r"\b(INT|FLOAT|STR)\b", text), file
