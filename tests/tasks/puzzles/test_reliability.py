"""How sure an answer is, from its residual: what was counted, and nothing more."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import tasks.sudoku
from tasks import shipped
from tasks.maze.config import PRESETS as MAZE
from tasks.maze.task import MazeTask
from tasks.output import wilson
from tasks.puzzles.evaluate import Predictions
from tasks.puzzles.reliability import Band, band_of, bands
from tasks.puzzles.report import measure, print_figures
from tasks.puzzles.search import calibration
from tasks.runs import RESULT
from tasks.sudoku.__main__ import main
from tasks.sudoku.task import SudokuTask

EXTREME = shipped.path_of("sudoku", "extreme")
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SURE, MIXED, NEVER = Band(1e-6, 1e-5, 570, 570), Band(1e-3, 1e-2, 24, 13), Band(0.1, 1.0, 1, 0)


def rows(*bands_of_eval: Band) -> list[dict[str, object]]:
    return [
        {
            "residual": f"{band.low:.0e} to {band.high:.0e}",
            "puzzles": band.puzzles,
            "exact_accuracy": band.right / band.puzzles,
        }
        for band in bands_of_eval
    ]


@pytest.mark.parametrize(
    ("band", "residual", "sentence"),
    [
        (
            SURE,
            9.7e-6,
            "residual 9.7e-06: of 570 held-out puzzles with such a residual (1e-06 to 1e-05) "
            "all were right (95 % interval: 99.3 to 100.0 %)",
        ),
        (
            MIXED,
            2e-3,
            "residual 2.0e-03: of 24 held-out puzzles with such a residual (1e-03 to 1e-02) "
            "13 were right (95 % interval: 35.1 to 72.1 %)",
        ),
        (
            NEVER,
            0.5,
            "residual 5.0e-01: of 1 held-out puzzle with such a residual (1e-01 to 1e+00) "
            "none was right (95 % interval: 0.0 to 79.3 %)",
        ),
    ],
)
def test_a_sentence_has_the_counts_and_their_interval(
    band: Band, residual: float, sentence: str
) -> None:
    assert band.sentence(residual, "puzzle") == sentence
    assert band.interval == wilson(band.right / band.puzzles, band.puzzles)


def test_a_residual_has_the_band_that_it_lies_in() -> None:
    known = [SURE, Band(1e-5, 1e-4, 0, 0), MIXED]
    assert band_of(known, 1e-6) is band_of(known, 9.9e-6) is SURE
    assert band_of(known, 5e-3) is MIXED
    for nothing in (2e-5, 1e-2, 1e-9, float("nan"), float("inf"), None):
        assert band_of(known, nothing) is None


def test_a_run_has_the_counts_of_its_evaluation(tmp_path: Path) -> None:
    path, result = tmp_path / "checkpoint.safetensors", tmp_path / RESULT
    assert bands(path) == []
    result.write_text(json.dumps({"eval": {"accuracy_by_residual": rows(SURE, MIXED)}}))
    assert bands(path) == [SURE, MIXED]
    off_size = {"accuracy_by_residual": rows(SURE), "trained_size": False}
    for useless in (json.dumps({"eval": off_size}), "{", json.dumps({"eval": {}}), "[]"):
        result.write_text(useless)
        assert bands(path) == []


def test_solve_says_how_often_such_an_answer_was_right(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sentence = "of 570 held-out puzzles with such a residual (1e-06 to 1e-05) all were right"
    assert main(["solve", PUZZLE, "--checkpoint", "extreme"]) == 0
    assert capsys.readouterr().out.count(sentence) == 1
    # Nobody has counted with another solver, nor for a copy elsewhere.
    assert main(["solve", PUZZLE, "--checkpoint", "extreme", "--solver", "anderson"]) == 0
    assert "such a residual" not in capsys.readouterr().out
    copy = shutil.copy(EXTREME, tmp_path / "copy.safetensors")
    assert main(["solve", PUZZLE, "--checkpoint", str(copy)]) == 0
    assert "such a residual" not in capsys.readouterr().out


def test_an_answer_in_python_has_the_counts_too() -> None:
    answer = tasks.sudoku.load("extreme", device="cpu").solve(PUZZLE)
    assert (answer.held_out, answer.trained_size) == (SURE, True)
    other = tasks.sudoku.load("extreme", device="cpu", solver="anderson").solve(PUZZLE)
    assert other.held_out is None


def test_calibration_has_intervals() -> None:
    residual = torch.tensor([2e-6, 5e-6, 3e-3, float("nan")])
    classes = torch.tensor([[0], [0], [1], [1]])
    found = Predictions(classes, residual, residual < 1e-5, torch.ones(4))
    first, second = calibration(found, torch.zeros(4, 1, dtype=torch.long))
    assert (first["puzzles"], first["exact_accuracy"]) == (2, 1.0)
    assert first["interval"] == wilson(1.0, 2)
    assert (second["residual"], second["interval"]) == ("1e-03 to 1e-02", wilson(0.0, 1))


def test_another_shortest_path_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    task, config = MazeTask(), MAZE["tiny"].changed(side=5)
    # All cells are free: from corner to corner there are 70 shortest paths.
    puzzle = task.complete("test", task.question("S" + " " * 23 + "G"))
    x, target = task.encode([puzzle], config)
    mirrored = target.view(1, 5, 5).mT.flatten(1)
    assert not torch.equal(mirrored, target)
    for classes, wrong in ((target, 0), (mirrored, 0), (x - x, 1)):
        found = Predictions(classes, torch.zeros(1), torch.ones(1, dtype=torch.bool), torch.ones(1))
        monkeypatch.setattr("tasks.puzzles.report.predict", lambda *_, found=found, **__: found)
        figures = measure(task, config.build(), [puzzle], config, quick=True)
        assert figures["wrong_among_converged"] == wrong


@pytest.mark.parametrize(
    ("converged", "wrong", "text"),
    [(0.5, 1, "1 of 50, 2.0% (0.4 to 10.5)"), (0.0, 0, "0 of 0"), (1.0, 0, "0 of 100, 0.0%")],
)
def test_wrong_answers_among_the_converged_are_printed(
    converged: float, wrong: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {
        "puzzles": 100, "exact_accuracy": 0.5, "valid": 0.5, "cell_accuracy": 0.9,
        "median_residual": 1e-5, "converged": converged, "mean_steps": 3.0, "max_steps": 9,
        "wrong_among_converged": wrong, "accuracy_by_rating": [],
    }  # fmt: skip
    print_figures("A title", figures, SudokuTask())
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "wrong among the converged" in printed
    assert text in printed
