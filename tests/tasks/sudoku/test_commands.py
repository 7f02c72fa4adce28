"""The command line from end to end, on the smallest board."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tasks import shipped
from tasks.sudoku.__main__ import main

MODEL = str(shipped.path_of("sudoku", "sixteen"))
SIX = "123456456123231564564231312645645312"
TINY = ["--preset", "tiny", "--train-puzzles", "60", "--test-puzzles", "20"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and caches go to a temporary folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short trained run, shared by the tests that only use it."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    code = main(["train", *TINY, "--steps", "100", "--out", str(folder)])
    assert code == 0
    return folder


def test_training_learns_and_leaves_everything(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["config"]["train"]["steps"] == result["train_steps"] == 100
    # A random filling of the blanks would be right about once in 4^10.
    assert result["eval"]["exact_accuracy"] > 0.5
    assert result["eval"]["median_residual"] < 1e-3
    assert {"restart_agreement", "exact_accuracy_4x", "valid"} <= set(result["eval"])
    for name in ("learning.png", "steps.png", "convergence.png", "convergence.gif", "log.jsonl"):
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").glob("events*"))
    page = (run / "report.html").read_text()
    assert page.count("<img") == 4
    assert f"<td>{result['eval']['exact_accuracy']:.6g}</td>" in page


def test_eval_repeats_the_figures_of_training(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(run / "checkpoint.safetensors")
    assert main(["eval", "--checkpoint", checkpoint]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])["eval"]
    before = json.loads((run / "result.json").read_text())["eval"]
    assert again["exact_accuracy"] == before["exact_accuracy"]


def test_eval_with_guesses(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(run / "checkpoint.safetensors")
    options = ["--quick", "--max-steps", "2", "--attempts", "3", "--guesses", "2"]
    assert main(["eval", "--checkpoint", checkpoint, *options]) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out)["eval"]
    curve = figures["search_curve"]
    assert [row["attempts"] for row in curve] == [0, 1, 2, 3]
    assert curve[0]["valid"] == figures["valid"]
    valid = [row["valid"] for row in curve]
    assert valid == sorted(valid)
    assert valid[0] < valid[-1]
    assert "2 attempts with guesses" in err
    assert "with guesses, rating" in err


def test_eval_with_another_solver(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(run / "checkpoint.safetensors")
    assert main(["eval", "--checkpoint", checkpoint, "--solver", "anderson", "--limit", "20"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["eval"]["puzzles"] == 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_compiled_blocks_give_the_same_figures(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", "--checkpoint", str(run / "checkpoint.safetensors"), "--quick"]
    found = []
    for options in ([], ["--compile"]):
        assert main([*arguments, *options]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1])["eval"])
    plain, compiled = found
    assert compiled["exact_accuracy"] == plain["exact_accuracy"]
    assert compiled["mean_steps"] == pytest.approx(plain["mean_steps"], rel=0.02)


def test_solve_prints_grid_steps_residual_and_verdict(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checkpoint = str(run / "checkpoint.safetensors")
    easy = "1234341221.343.1"
    code = main(["solve", easy, "--checkpoint", checkpoint])
    out = capsys.readouterr().out
    assert "solver steps, residual" in out
    assert (code == 0) == ("NOT a valid solution" not in out)
    many = tmp_path / "puzzles.txt"
    many.write_text(f"{easy}\n{easy.replace('1', '.', 1)}\n")
    main(["solve", str(many), "--checkpoint", checkpoint])
    assert capsys.readouterr().out.count("solver steps") == 2


EASY = "1234341221.343.1"
EASY_9 = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


@pytest.mark.parametrize(
    "content",
    [
        f"# two of them\n\n{EASY}\r\n{EASY}\n",
        f"source,question,answer,rating\nme,{EASY},,\nme,{EASY},,3\n",
        f'question,"a, b"\n{EASY},1\n"{EASY}",2\n',
        f"\ufeffquestion\r\n{EASY}\r\n{EASY}\r\n",
    ],
)
def test_solve_reads_files_of_either_kind_and_the_standard_input(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    Path("puzzles").write_text(content, newline="")
    monkeypatch.setattr(sys, "stdin", io.StringIO(content))
    for name in ("puzzles", "-"):
        assert main(["solve", name, "--checkpoint", str(run)]) in (0, 1)
        assert re.search(r"[012] of 2 answers: a valid solution", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{EASY}\n\n11{'.' * 14}\n", "puzzles, line 3: Digit 1 stands twice"),
        (f"{EASY}\n{'.' * 15}\n", "puzzles, line 2: A grid must have"),
        (f"rating,question\n1,{EASY}\n2\n", "puzzles, line 3: the row has 1 fields"),
        (f'question,a\n"{EASY},2\n', "puzzles, line 2: A quote opens in this line"),
        ("a,b\n1,2\n", "puzzles, line 1: CSV must have a column `question`, got the header"),
        ("\n", "There is no puzzle in 'puzzles'. Name one, or a file with one per line."),
        (f"question\n{EASY}\n11{'.' * 14}\n", "puzzles, line 3: Digit 1 stands twice"),
    ],
)
def test_a_bad_file_of_puzzles_is_refused_with_its_line(
    content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("puzzles").write_text(content)
    assert main(["solve", "puzzles"]) == 2
    assert f"error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There is no puzzle. Name one, or a file with one per line."),
        (["nofile"], "There is no file 'nofile', either."),
        ([EASY, "11" + "." * 14], "error: Argument 2 of `solve`: Digit 1 stands twice"),
        ([EASY, EASY_9], "got 4x4 and 9x9. Solve each size in a call of its own."),
    ],
)
def test_puzzles_that_are_none_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_training_that_fails_on_its_first_weights_leaves_no_folder() -> None:
    assert main(["train", *TINY, "--weights", "."]) == 2
    assert not list(Path("runs/sudoku").iterdir())


@pytest.mark.slow
def test_export_is_read_by_torch_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--checkpoint", str(run / "checkpoint.safetensors")]
    assert main(["export", "sudoku.pt2", "--solver", "anderson", *source]) == 0
    assert "Written: sudoku.pt2, for grids of 16 cells" in capsys.readouterr().out
    program = torch.export.load("sudoku.pt2").module()
    logits = program(torch.zeros(3, 16, dtype=torch.int64))["logits"]
    assert logits.shape[:2] == (3, 16)
    assert main(["export", "sudoku.pt2", "--solver", "newton_krylov", *source]) == 2
    assert "cannot be exported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--preset", "tinny"], "Did you mean 'tiny'"),
        (["train", "--preset", "tiny", "--solver", "andersen"], "Did you mean 'anderson'"),
        (["train", "--preset", "tiny", "--backward", "exakt"], "Did you mean 'exact'"),
        (["train", "--preset", "tiny", "--minutes", "-1"], "`minutes` must be above 0"),
        (["train", "--preset", "tiny", "--device", "tpu"], "must be auto, cpu, cuda"),
        (["train", "--resume", "nowhere"], "No checkpoint at nowhere"),
        (
            ["train", "--resume", "extreme"],
            "no run can go on from it. `train --weights extreme` begins a new run with its weights",
        ),
        (["trane"], "Unknown command 'trane'"),
        (["eval", "--checkpoint", "nowhere"], "No checkpoint at nowhere"),
        (["eval", "--data", "."], "error: . is a folder. Name a file of puzzles"),
        (["eval", "--data", os.devnull], "holds no puzzle"),
        (["eval", "--data", "x.csv"], "no file of puzzles at x.csv, which `--data` names. Put it"),
        (["eval", "--data", "-"], "`--data` takes a file, and not the standard input, which"),
        (
            ["train", "--preset", "sudoku-extreme-27m", "--train-data", "x.csv"],
            "Sudoku-Extreme are at https://huggingface.co/datasets/sapientinc/sudoku-extreme.",
        ),
        (["solve", "1234341221.343.1", "--max-steps", "0"], "`--max-steps` must be at least 1"),
        (["eval", "--attempts", "-1"], "`--attempts` must be at least 0, got -1"),
        (["eval", "--guesses", "0"], "`--guesses` must be at least 1, got 0"),
        (["solve", "1234"], "16"),
        (["solve", "x" * 16], "x"),
        (["solve", "nofile.txt"], "error: 'nofile.txt' is no such file. Name a file with one"),
        (["solve", "missing/puzzles"], "error: 'missing/puzzles' is no such file."),
        (["solve", "./"], "error: './' is a folder."),
        (["solve", MODEL], "is a model, which `--checkpoint` names: here belongs a puzzle, or a"),
        (["solve", "11" + "." * 14], "1"),
        (["solve", "." * 16], "more than one solution"),
        (["solve", "1234341221.343.1", SIX], "of one size: got 4x4 and 6x6"),
        (["solve", "." * 25], "must have 16 (4x4) or 36 (6x6) cells, got 25"),
        (["train", "--side", "7"], "`side` must be the product of"),
        (["train", "--side", "7"], "got 7. Near it: 6 and 8."),
    ],
)
def test_bad_input_has_a_clear_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as stop:  # how the flag parser refuses a value
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error


def test_newest_run_is_found_baselines_are_passed_over_and_broken_files_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "sudoku" / "mine"
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes((run / "checkpoint.safetensors").read_bytes())
    broken = tmp_path / "runs" / "sudoku" / "broken"
    broken.mkdir()
    (broken / "checkpoint.safetensors").write_bytes(b"nothing")
    assert main(["train", *TINY, "--steps", "2", "--model", "transformer"]) == 0
    capsys.readouterr()
    with pytest.warns(UserWarning, match="A newer run is left out: runs/sudoku/broken/"):
        assert main(["solve", "1234341221.343.1"]) in (0, 1)
    out = capsys.readouterr().out
    assert re.search(
        r"^Solving with runs/sudoku/mine/\S+, \d+% of held-out puzzles right$", out, re.M
    )


def test_unknown_flag_is_refused() -> None:
    assert main(["train", "--preset", "tiny", "--minuts", "1"]) == 2


def test_unwritable_output_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["train", *TINY, "--out", str(tmp_path / "file" / "run")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_run_is_never_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--out", str(run)]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_malformed_line_is_named_and_can_be_skipped(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "bad.csv"
    data.write_text(
        "source,question,answer,rating\na,1234341221.343.1,1234341221434321,0\nb,12,34,0\n"
    )
    arguments = ["eval", "--checkpoint", str(run / "checkpoint.safetensors"), "--data", str(data)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "bad.csv" in error
    assert "3" in error
    assert "--skip-bad" in error
    with pytest.warns(UserWarning, match="1"):
        assert main([*arguments, "--skip-bad"]) == 0


@pytest.mark.slow
def test_killed_run_resumes_evaluates_and_solves(tmp_path: Path) -> None:
    """Ctrl-C a real process, then go on with the command that it prints."""
    command = [sys.executable, "-m", "tasks.sudoku"]
    root = Path(__file__).parents[3]
    small = ["--width", "8", "--batch-size", "8", "--steps", "300"]
    options = [*TINY, *small, "--out", str(tmp_path / "run")]
    environment = {"PYTHONPATH": str(root), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [*command, "train", *options],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **environment},
    )
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and log.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, out = process.communicate(timeout=60)
    assert process.returncode == 130
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    assert f"--resume {checkpoint}" in out
    assert main(["train", "--resume", str(checkpoint)]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["train_steps"] == 300
    assert main(["eval", "--checkpoint", str(checkpoint), "--limit", "4"]) == 0
    assert main(["solve", "1234341221.343.1", "--checkpoint", str(checkpoint)]) in (0, 1)
