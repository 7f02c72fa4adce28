"""The command line of mazes from end to end, on the smallest ones."""

import json
from pathlib import Path

import pytest
import torch

from tasks.maze.__main__ import main

FROM_FILES = ["--preset", "tiny", "--side", "5", "--width", "16", "--eval-max-steps", "32"]
FROM_FILES += ["--train-puzzles", "200"]
SMALL = [*FROM_FILES, "--min-path", "6", "--test-puzzles", "60"]
DRAWN = "S #  \n#   #\n# #  \n ##  \n   #G"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and caches go to a temporary folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short trained run, shared by the tests that only use it."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    assert main(["train", *SMALL, "--steps", "250", "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_training_learns_and_leaves_everything(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    figures = result["eval"]
    assert figures["exact_accuracy"] > 0.3
    assert figures["valid"] >= figures["exact_accuracy"]
    assert figures["median_residual"] < 1e-3
    assert 0 <= figures["converged"] <= 1
    for name in ("learning.png", "steps.png", "convergence.png", "convergence.gif", "maze.png"):
        assert (run / name).stat().st_size > 0, name


@pytest.mark.slow
def test_eval_in_depth_and_breadth(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(run / "model.safetensors")
    options = ["--breadth", "4", "--max-steps", "16", "--choose", "valid", "--draw", "pictures"]
    assert main(["eval", "--checkpoint", model, *options]) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out)["eval"]
    assert [row["breadth"] for row in figures["breadth_curve"]] == [1, 2, 4]
    for row in figures["breadth_curve"]:
        assert row["valid"] >= row["residual"] - 1e-9
    assert figures["breadth_curve"][0]["vote"] == figures["exact_accuracy"]
    assert figures["max_steps"] == 16
    assert sum(figures["cases"].values()) == pytest.approx(1)
    assert "case: coexist" in err
    assert {p.name for p in Path("pictures").iterdir()} == {
        "breadth.png",
        "calibration.png",
        "depth.png",
    }


@pytest.mark.slow
def test_eval_refuses_to_guess(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(run / "model.safetensors")
    options = ["--quick", "--max-steps", "1", "--attempts", "1"]
    assert main(["eval", "--checkpoint", model, *options]) == 2
    assert "a maze cannot show any of its answer" in capsys.readouterr().err


@pytest.mark.slow
def test_solve_reads_a_drawing_and_draws(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("maze.txt").write_text(DRAWN)
    model = str(run / "model.safetensors")
    code = main(["solve", "maze.txt", "--checkpoint", model, "--draw", "pictures"])
    out = capsys.readouterr().out
    assert "solver steps, residual" in out
    assert (code == 0) == ("NOT a shortest path" not in out)
    assert Path("pictures/maze.png").stat().st_size > 0
    assert main(["solve", DRAWN.replace("\n", ""), "--checkpoint", model]) == code


@pytest.mark.slow
def test_training_on_a_file_counts_test_mazes_in_it(run: Path, tmp_path: Path) -> None:
    made = sorted((tmp_path / "cache").glob("**/*-train.csv"))
    assert not made  # the run of the fixture had a cache of its own
    assert main(["train", *SMALL, "--steps", "1", "--out", "first"]) == 0
    (data,) = (tmp_path / "cache").glob("**/*-train.csv")
    files = ["--train-data", str(data), "--test-data", str(data)]
    with pytest.warns(UserWarning, match="200 of 200 test mazes are training mazes"):
        assert main(["train", *FROM_FILES, "--steps", "1", *files, "--out", "second"]) == 0
    result = json.loads(Path("second/result.json").read_text())
    assert result["test_puzzles_in_training"] == 200


@pytest.mark.slow
def test_export_is_read_by_torch_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--checkpoint", str(run / "checkpoint.safetensors")]
    assert main(["export", "maze.pt2", "--solver", "anderson", *source]) == 0
    assert "Written: maze.pt2, for grids of 25 cells" in capsys.readouterr().out
    program = torch.export.load("maze.pt2").module()
    logits = program(torch.zeros(3, 25, dtype=torch.int64))["logits"]
    assert logits.shape[:2] == (3, 25)
    assert main(["export", "maze.pt2", "--solver", "newton_krylov", *source]) == 2
    assert "cannot be exported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--preset", "tinny"], "Did you mean 'tiny'"),
        (["train", "--preset", "tiny", "--side", "2"], "`side` must be at least 3"),
        (["train", "--preset", "tiny", "--max-path", "3"], "2 <= min <= max <= 81"),
        (["train", *SMALL, "--train-puzzles", "20"], "20 mazes, fewer than `batch_size` = 32"),
        (["eval", "--breadth", "0"], "`--breadth` must be at least 1, got 0"),
        (["eval", "--max-steps", "0"], "`--max-steps` must be at least 1, got 0"),
        (["eval", "--checkpoint", "nowhere"], "No checkpoint at nowhere"),
        (["solve", "S  G"], "No checkpoint for boards of 4 cells"),
        (["solve", "S# G"], None),
        (["solve", "S##G"], "cannot be reached"),
        (["solve", "S S G    "], "exactly one start 'S', got 2"),
        (["solve", "12.4"], "got '1' at (row 1, column 1)."),
        (["eval", "--data", "x.csv"], "https://huggingface.co/datasets/sapientinc/maze-30x30-hard"),
    ],
)
def test_bad_input_has_a_clear_error(
    arguments: list[str], message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as stop:  # how the flag parser refuses a value
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert message is None or message in " ".join(error.split())
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_checkpoint_of_another_task_or_size_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.sudoku.__main__ import main as sudoku

    model = str(run / "model.safetensors")
    assert sudoku(["eval", "--checkpoint", model]) == 2
    assert "was trained on 'maze', not on 'sudoku'" in capsys.readouterr().err
    assert main(["solve", "S  G", "--checkpoint", model]) == 2
    assert "solves 5x5 boards, but the maze is 2x2" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_of_another_task_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "sudoku.csv"
    data.write_text("source,question,answer,rating\na,1.34341221.343.1,1234341221434321,0\n")
    model = str(run / "model.safetensors")
    assert main(["eval", "--checkpoint", model, "--data", str(data)]) == 2
    assert "another task" in capsys.readouterr().err
