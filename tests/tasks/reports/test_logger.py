"""The progress of a run, where nobody reads it any more."""

import errno
import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.summary.writer.record_writer import RecordWriter

from tasks.reports.logger import ProgressBar, Reporter, describe

ROOT = Path(__file__).parents[3]
ROW = {"step": 1.0, "loss": 1.0}


def test_a_pipe_that_is_closed_does_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with Reporter(tmp_path) as reporter:
            with pytest.warns(UserWarning, match="Nobody can read the output any more.*log.jsonl"):
                reporter.show(ROW, 0.5, 1.0)
            reporter.record(ROW)
        print("What is printed after that is not an error either", flush=True)
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_terminal_that_is_closed_does_not_end_training(tmp_path: Path) -> None:
    class Closed:
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def flush(self) -> None:
            self.write("")

    reporter = Reporter(tmp_path)
    reporter.bar.live.console = Console(file=Closed(), force_terminal=True)  # type: ignore[arg-type]
    reporter.bar.disable = False
    with pytest.warns(UserWarning, match="Nobody can read the output any more"), reporter:
        reporter.show(ROW, 0.5, 1.0)


def write_until_it_is_noticed(reporter: Reporter) -> None:
    while reporter.board is not None:
        reporter.record(ROW)
        time.sleep(0.01)


def test_a_failed_write_of_tensorboard_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread, which dies of it, prints nothing; those of others still do."""
    printed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    before = threading.excepthook

    def fail(*_: object) -> None:
        raise OSError("no space")

    reporter = Reporter(tmp_path)
    monkeypatch.setattr(RecordWriter, "write", fail)
    with reporter:
        with pytest.warns(UserWarning, match=r"cannot be written \(no space\)"):
            write_until_it_is_noticed(reporter)
        assert not printed
        other = threading.Thread(target=fail)
        other.start()
        other.join()
    assert [args.thread for args in printed] == [other]
    assert threading.excepthook == before


@pytest.mark.parametrize("columns", [60, 80, 120, 160])
def test_a_narrow_terminal_keeps_what_matters_most(columns: int, tmp_path: Path) -> None:
    reporter = Reporter(tmp_path)
    screen = Console(width=columns, force_terminal=True, record=True, file=io.StringIO())
    figures = {"step": 89.0, "loss": 1.2345e-4, "cell_accuracy": 0.999, "exact_accuracy": 0.98,
               "residual": 0.1, "solver_steps": 3.0, "test_exact": 0.9, "test_radius": 0.8,
               "puzzles_per_second": 1234.5, "learning_rate": 2e-3, "memory_gb": 1.26}  # fmt: skip
    reporter.bar.update(reporter.row, completed=0.37, figures=describe(figures), left="2:05 left")
    screen.print(reporter.bar.get_renderable())
    (line,) = screen.export_text().splitlines()
    most = " 37% 2:05 left loss 0.000123 | exact 98.0% | lr 2.0e-03 | "
    assert (most if columns >= 80 else most[:35]) in line
    assert len(line) <= columns
    text = describe(figures)
    assert "lr 2.0e-03 | step 89 | cells 99.9% | solver 3.0 steps" in text
    assert "1,234 puzzles/s | peak 1.3 GB | held-out 90% | radius 0.80" in text
    reporter.log.close()


def test_a_validation_leaves_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(tmp_path) as reporter:
        validation = {"test_exact": 0.38, "test_converged": 0.83, "test_radius": 0.82}
        reporter.look(validation, {"step": 30.0, "loss": 0.5, "minutes": 3.34})
        reporter.look({}, {"step": 31.0, "loss": 0.5, "minutes": 3.4})
    out = capsys.readouterr().out
    assert out == "step 30 | held-out 38% | converged 83% | radius 0.82 | loss 0.500 | 3:20\n"


def test_the_line_of_a_validation_is_broken_between_two_metrics(tmp_path: Path) -> None:
    screen = Console(width=80, force_terminal=True, record=True, file=io.StringIO())
    validation = {"test_bits": 1.234, "test_converged": 1.0, "test_radius": 0.95}
    with Reporter(tmp_path) as reporter:
        reporter.console = screen
        reporter.look(validation, {"step": 12345.0, "loss": 0.0123, "minutes": 123.0})
    assert screen.export_text().splitlines() == [
        "step 12345 | held-out 1.234 bits per byte | converged 100% | radius 0.95",
        "  loss 0.0123 | 123:00",
    ]


def test_an_evaluation_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bar = ProgressBar()
    screen = Console(width=80, force_terminal=True, record=True, file=io.StringIO())
    bar.console = screen
    for name, total in (("an earlier part", 2), ("answers from 4 starts", 8)):
        bar.begin(name, total)
        screen.print(bar.bar.get_renderable())
        (line,) = screen.export_text().splitlines()
        assert "  0% " in line  # no time is left that nobody knows
        assert "left" not in line
        assert name in line
        now += 30.0
        bar.advance()
    now += 30.0
    bar.advance()
    screen.print(bar.bar.get_renderable())
    (line,) = screen.export_text().splitlines()
    assert " 25% 3:00 left answers from 4 starts" in line
    assert len(line) <= 80


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo terminals here")
@pytest.mark.parametrize("to_file", [False, True])
def test_a_warning_stands_above_the_bar_or_in_the_file_of_errors(
    to_file: bool, tmp_path: Path
) -> None:
    code = (
        "import warnings\n"
        "from tasks.output import plain_warnings\n"
        "from tasks.reports.logger import ProgressBar\n"
        "with plain_warnings(), ProgressBar() as bar:\n"
        "    bar.begin('answers', 8)\n"
        "    bar.advance()\n"
        "    warnings.warn('Step 3 is skipped: its gradient is not finite.')\n"
    )
    ours, theirs = pty.openpty()
    errors = tmp_path / "errors.txt"
    with errors.open("w") as file:
        subprocess.run(
            [sys.executable, "-c", code], stdout=theirs, stderr=file if to_file else theirs,
            check=True, cwd=ROOT, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
        )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    said = "warning: Step 3 is skipped: its gradient is not finite."
    assert errors.read_text() == (f"{said}\n" if to_file else "")
    assert ("warning" in shown) is not to_file
    if not to_file:
        # On a line of its own: the bar's line is erased before it, and drawn anew below it.
        assert re.search(rf"\x1b\[2K{re.escape(said)}\r?\n", shown)


def test_an_evaluation_is_a_line_for_each_part_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressBar() as bar:
        bar.begin("answers", 3)
        bar.advance(3)
        bar.begin("accuracy by solver steps, of 9", 2)
    with ProgressBar(quiet=True) as bar:  # another process of several
        bar.begin("answers", 3)
        bar.advance()
    out, said = capsys.readouterr()
    assert out == ""
    assert said == "Evaluating: answers ...\nEvaluating: accuracy by solver steps, of 9 ...\n"
