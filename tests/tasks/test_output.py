"""What a command prints on a terminal, and what in a pipe."""

import contextlib
import importlib
import io
import json
import math
import os
import signal
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tasks.output import (
    COLUMNS,
    decimal,
    decimals,
    plain_warnings,
    print_result,
    result_alone,
    say,
    visible,
    wrapped,
)
from tasks.puzzles.evaluate import Predictions, evidence, scores
from tasks.sudoku.__main__ import main
from tasks.training.metrics import Evidence, step_metrics

RESULT = {"a": 1}
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_pipe_the_standard_output_has_the_result_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with result_alone():
        print("for people")
        print_result(RESULT)
    print("afterwards")
    out, err = capsys.readouterr()
    assert out == '{"a": 1}\nafterwards\n'
    assert err == "for people\n"


def test_a_terminal_shows_no_json_unless_it_is_asked_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    with result_alone():
        print("for people")
        print_result(RESULT, tmp_path / "result.json")
    assert screen.getvalue() == "for people\n"
    assert json.loads((tmp_path / "result.json").read_text()) == RESULT
    print_result(RESULT, Path("-"))
    assert screen.getvalue().endswith('{"a": 1}\n')
    assert not Path("-").exists()


def test_what_a_command_is_doing_is_told_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say("Planning.")
    assert capsys.readouterr() == ("", "")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    say("Planning.")
    assert screen.getvalue() == "Planning.\n"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("task", ["sudoku", "lm"])
def test_a_plan_says_that_it_computes(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, tables = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", tables)
    main = importlib.import_module(f"tasks.{task}.__main__").main
    assert main(["plan", "--preset", "tiny"]) == 0
    (line,) = screen.getvalue().splitlines()
    assert line.startswith("Planning attractor, preset tiny:")
    assert len(line) < COLUMNS
    assert "Planning" not in tables.getvalue()


def test_a_command_formats_a_warning_without_our_code() -> None:
    """Real ones are in `test_logger`, in a process of their own: pytest records those of ours."""

    def formatted() -> str:
        return warnings.formatwarning(UserWarning("Step 3 is skipped."), UserWarning, "loop.py", 9)

    with plain_warnings():
        assert formatted() == "warning: Step 3 is skipped.\n"
    assert "loop.py:9: UserWarning" in formatted()


def test_the_folder_of_a_result_is_made_and_an_error_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_result(RESULT, tmp_path / "new" / "result.json")
    assert json.loads((tmp_path / "new" / "result.json").read_text()) == RESULT
    capsys.readouterr()
    with pytest.raises(OSError, match="directory"):
        print_result(RESULT, tmp_path)
    assert json.loads(capsys.readouterr().out) == RESULT


def test_eval_can_be_piped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--checkpoint", "extreme", "--quick", "--limit", "2"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["eval"]["puzzles"] == 2
    assert "exact accuracy" in err


def test_many_puzzles_are_solved_with_a_bar_and_as_one_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["solve", *[PUZZLE] * 3, "--checkpoint", "extreme", "--max-steps", "2", "--json=-"]

    def answers() -> list[str]:
        assert main(arguments) == 1
        out, err = capsys.readouterr()
        said.append("Solving: 3 puzzles ...\n" in err)
        return [each["answer"] for each in json.loads(out)["answers"]]

    said: list[bool] = []
    together = answers()
    monkeypatch.setattr("tasks.puzzles.commands.TOGETHER", 2)
    assert answers() == together
    assert said == [False, True]


def test_help_stays_on_the_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(["eval", "--quick", "--help"])
    assert "--checkpoint" in capsys.readouterr().out


def test_a_reader_that_has_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with result_alone():
            print_result(RESULT)


def test_a_terminal_obeys_no_control_characters_of_a_model() -> None:
    text = "a\x00\x0e\x1b[2J\x9b\n\tb\N{REPLACEMENT CHARACTER}ü"
    shown = "a\\x00\\x0e\\x1b[2J\\x9b\n\tb\N{REPLACEMENT CHARACTER}ü"
    assert visible(text, Terminal()) == shown
    assert visible(text, io.StringIO()) == text


def test_prose_is_broken_between_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Solving with /a/path/of/a/file/that/is-rather-long.safetensors, residual 1.5e-06 of 640"
    assert wrapped(text) == text
    monkeypatch.setattr(sys, "stdout", Terminal())
    lines = wrapped(f"{text}\n\n{text}").split("\n")
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80
    assert " ".join(lines[0:2]).split() == text.split()
    assert wrapped("x" * 200) == "x" * 200  # such a word is left to the terminal


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo terminals here")
def test_prose_takes_the_width_of_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 30, 0, 0))
    with open(ours, "rb"), open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert wrapped("one two three four five six seven") == (
            "one two three four five six\n  seven"
        )


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_are_written_with_the_digits_that_they_were_computed_with(
    kind: torch.dtype,
) -> None:
    values = torch.tensor([0.1, 3e-6, 1e30, -2.5, 0.0, math.inf, math.nan], dtype=kind)
    found = decimals(values)
    assert torch.tensor(found[:-1], dtype=kind).equal(values[:-1])
    assert math.isnan(found[-1])
    if kind != torch.bfloat16:
        assert str(found) == "[0.1, 3e-06, 1e+30, -2.5, 0.0, inf, nan]"
    assert decimal(values[3]) == -2.5


def test_shares_are_written_as_fractions_of_counts() -> None:
    """199 of 200 is 0.995, not 0.9950000047683716, which is the nearest number of float32."""
    right = torch.arange(200) != 7
    classes = right[:, None].long()
    found = scores(classes, torch.ones_like(classes))
    assert found == {"cell_accuracy": 0.995, "exact_accuracy": 0.995}
    residual = torch.full((200,), 3e-6)
    solved = evidence(Predictions(classes, residual, right, torch.full((200,), 7)), 9)
    assert json.dumps(solved) == (
        '{"max_steps": 9, "converged": 0.995, "mean_steps": 7.0, "median_residual": 3e-06, '
        '"residual_90th_percentile": 3e-06}'
    )
    trained = step_metrics(Evidence(right, residual, torch.full((200,), 7)))
    assert trained["converged"] == 0.995


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "tiny"], "Unexpected argument 'tiny'. Did you mean `--preset tiny`?"),
        (["train", "tinny"], "Unexpected argument 'tinny'. Did you mean `--preset tiny`?"),
        (["train", "--checkpoint", "x"], "Did you mean `--weights` or `--resume`?"),
        (["plan", "--checkpoint", "x"], "Did you mean `--weights`?"),
        (["eval", "--resume", "x"], "Did you mean `--checkpoint`?"),
        (["train", "--preset", "foo"], "With another model: `reasoner-tiny` and the like, of"),
    ],
)
def test_a_wrong_word_is_guessed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (f"solve {PUZZLE}", "--draw"),
        (f"solve {PUZZLE}", "--json"),
        ("plan --preset tiny", "--json"),
        ("eval", "--draw"),
        ("compare --preset tiny", "--out"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(
    command: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file" / "x"
    path.parent.touch()
    assert main([*command.split(), option, str(path)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"error: `{option} {path}` cannot be written (Not a directory). Name an")


def test_a_reader_that_goes_away_is_no_error() -> None:
    """As `| head` does, which closes the pipe when it has read enough."""
    pipe = f"{sys.executable} -m tasks.sudoku solve {PUZZLE} | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 128 + signal.SIGPIPE
    assert "error" not in ended.stderr
