"""The progress of a run, where nobody reads it any more."""

import errno
import os
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.summary.writer.record_writer import RecordWriter

from tasks.reports.logger import Reporter

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
