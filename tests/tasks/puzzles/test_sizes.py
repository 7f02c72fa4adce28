"""Trained weights on boards of another size: the same map, and no claim about its answers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tasks.sudoku
from tasks.maze.config import PRESETS as MAZES
from tasks.puzzles.files import write_puzzles
from tasks.puzzles.sizes import at_size, can_resize, resized
from tasks.sudoku.__main__ import main
from tasks.sudoku.board import Board
from tasks.sudoku.config import PRESETS
from tasks.sudoku.generate import generate

SMALL = PRESETS["tiny"].changed(width=16)
WHERE = Path("model.safetensors")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_weights_and_the_solver_stay() -> None:
    model: Any = SMALL.build().eval()
    model.solving.solver = SMALL.solve.evaluation_solver("anderson")
    other, config, caution = at_size(model, SMALL, 6, WHERE, "puzzle")
    assert (config.data.side, config.data.board.box_cols) == (6, 3)
    assert other.solving.solver is model.solving.solver
    assert caution is not None
    assert "trained on 4x4 boards" in caution
    assert "not on 6x6" in caution
    back, _, _ = at_size(other, config, 4, WHERE, "puzzle")
    x = torch.randint(0, 5, (3, 16))
    with torch.no_grad():
        assert torch.equal(back(x).logits, model(x).logits)


def test_the_trained_size_needs_no_other_model() -> None:
    model = SMALL.build()
    for side in (4, None):
        assert at_size(model, SMALL, side, WHERE, "puzzle") == (model, SMALL, None)


@pytest.mark.parametrize("side", [6, 8, 9, 16])
def test_networks_without_weights_of_places_and_symbols_take_any_size(side: int) -> None:
    assert can_resize(SMALL, side)
    assert can_resize(PRESETS["extreme"], side)
    assert can_resize(MAZES["hard"], side)


@pytest.mark.parametrize("layout", ["cells", "attention", "mixer", "image"])
def test_others_belong_to_their_size(layout: Any) -> None:
    config = SMALL.changed(layout=layout)
    assert not can_resize(config, 6)
    message = rf"{WHERE} solves 4x4 boards, but the puzzle is 6x6, .* layout '{layout}' do not fit"
    with pytest.raises(ValueError, match=message):
        at_size(config.build(), config, 6, WHERE, "puzzle")


def test_no_board_has_a_prime_side() -> None:
    assert not can_resize(SMALL, 7)
    with pytest.raises(ValueError, match="got 7"):
        resized(SMALL, 7)


def test_solve_and_eval_say_that_nothing_was_verified(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    puzzles = generate(3, Board.of(6), (18, 18), workers=1)
    caution = "That a converged answer is right was only verified there, and not on 6x6."
    code = main(["solve", puzzles[0].question, "--checkpoint", "extreme"])
    out = capsys.readouterr().out
    assert out.count(caution) == 1
    assert (code == 0) == ("NOT a valid solution" not in out)
    for claim in ("held-out", "such a residual"):
        assert claim not in out
    write_puzzles(tmp_path / "six.csv", puzzles)
    options = ["--data", "six.csv", "--quick", "--max-steps", "16", "--json", "six.json"]
    assert main(["eval", "--checkpoint", "extreme", *options]) == 0
    assert caution in " ".join(capsys.readouterr())
    figures = json.loads((tmp_path / "six.json").read_text())["eval"]
    assert figures["trained_size"] is False
    assert figures["puzzles"] == 3
    assert isinstance(figures["wrong_among_converged"], int)


@pytest.mark.parametrize(("command", "work"), [("solve", "commands.solve_batch"),
                                               ("eval", "report.measure")])  # fmt: skip
def test_it_is_said_before_the_solve(
    command: str,
    work: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise ValueError("here the work begins")

    monkeypatch.setattr(f"tasks.puzzles.{work}", stop)
    puzzles = generate(1, Board.of(6), (18, 18), workers=1)
    write_puzzles(tmp_path / "six.csv", puzzles)
    data = [str(tmp_path / "six.csv")]
    arguments = data if command == "solve" else ["--data", *data]
    assert main([command, *arguments, "--checkpoint", "extreme"]) == 2
    out, err = capsys.readouterr()
    assert "here the work begins" in err
    assert "was only verified there, and not on 6x6" in out + err


def test_a_solver_for_another_side_claims_nothing() -> None:
    nine = tasks.sudoku.load("extreme", device="cpu")
    assert nine.for_side(9) is nine
    twelve = nine.for_side(12)
    puzzle = generate(1, Board.of(12), (72, 72), workers=1)[0]
    answer = twelve.solve(puzzle.question, max_steps=8)
    assert (twelve.side, len(answer.answer)) == (12, 144)
    assert (answer.trained_size, answer.held_out) == (False, None)
    with pytest.raises(ValueError, match=r"must have 81 \(9x9\) cells, got 144"):
        nine.solve(puzzle.question)


def test_a_large_board_trains_evaluates_solves_and_draws(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [
        "--side", "12", "--train-puzzles", "8", "--test-puzzles", "2", "--batch-size", "4",
        "--steps", "2", "--width", "8", "--refiner-blocks", "1", "--eval-max-steps", "4",
    ]  # fmt: skip
    assert main(["train", *options, "--out", "run"]) == 0
    result = json.loads(Path("run/result.json").read_text())
    assert result["config"]["data"]["side"] == 12
    puzzle = generate(1, Board.of(12), (72, 72), workers=1)[0].question.lower()
    capsys.readouterr()
    main(["solve", puzzle, "--checkpoint", "run", "--draw", "pictures"])
    out = capsys.readouterr().out
    assert "trained on" not in out
    assert Path("pictures/convergence.png").stat().st_size > 0
