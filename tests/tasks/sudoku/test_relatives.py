"""Relatives of puzzles: proper, minimal, with the same solution, still hard."""

from pathlib import Path

import pytest
import torch

from tasks.puzzles.puzzle import Puzzle
from tasks.sudoku.board import Board, parse
from tasks.sudoku.config import PRESETS, SudokuConfig
from tasks.sudoku.generate import generate
from tasks.sudoku.relatives import SOURCE, harder, relatives
from tasks.sudoku.solver import complete, search
from tasks.sudoku.task import SudokuTask

BOARD = Board.of(9)
# The puzzle of the README, by A. Inkala (2012): our solver makes some 90 guesses.
HARD = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."


@pytest.fixture(scope="module")
def hard() -> Puzzle:
    return complete("known", parse(HARD), BOARD)


def test_relatives_are_minimal_puzzles_with_the_same_solution(hard: Puzzle) -> None:
    found = relatives([hard], 6, workers=1)
    assert len({puzzle.question for puzzle in found} | {hard.question}) == 7
    for puzzle in found:
        clues = parse(puzzle.question, BOARD)
        assert puzzle.answer == hard.answer
        assert puzzle.source == SOURCE
        assert len(search(clues, BOARD).solutions) == 1
        for cell in range(BOARD.num_cells):
            if clues[cell]:
                fewer = [*clues[:cell], 0, *clues[cell + 1 :]]
                assert len(search(fewer, BOARD).solutions) == 2


def test_relatives_are_as_hard_up_to_a_bound(hard: Puzzle) -> None:
    found = relatives([hard], 6, workers=1)
    assert min(search(parse(puzzle.question), BOARD).num_guesses for puzzle in found) >= 40
    ordinary = generate(50, BOARD, minimal=True, workers=1)
    assert sum(puzzle.rating >= 40 for puzzle in ordinary) == 0


def test_harder_puzzles_keep_their_solution() -> None:
    puzzles = generate(4, BOARD, minimal=True, workers=1)
    found = harder(puzzles, 10, workers=1)
    assert [puzzle.answer for puzzle in found] == [puzzle.answer for puzzle in puzzles]
    assert [puzzle.rating >= 10 for puzzle in found] == [True] * 4
    assert sum(puzzle.rating >= 10 for puzzle in puzzles) < 4
    assert harder(found, 10, workers=1) == found


def test_what_cannot_be_harder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.sudoku.relatives._MOST_STEPS_UP", 20)
    puzzle = generate(1, Board.of(4), (4, 4), workers=1)
    with pytest.raises(ValueError, match=r"that needs 100 guesses; .* Ask for fewer\."):
        harder(puzzle, 100, workers=1)


def test_harder_sets_are_kept_apart_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    task, options = SudokuTask(), {"min_clues": 20, "max_clues": 28, "minimal": True}
    easy = SudokuConfig.of(train_puzzles=2, test_puzzles=1, **options)
    plain, hard = task.make(easy), task.make(easy.changed(min_guesses=6))
    assert min(puzzle.rating for part in hard for puzzle in part) >= 6
    assert task.make(easy.changed(min_guesses=6)) == hard
    assert task.make(easy) == plain


def test_seed_and_puzzle_decide(hard: Puzzle) -> None:
    other = generate(1, BOARD, (24, 26), seed=1, workers=1)[0]
    both = relatives([other, hard], 3, workers=1)
    assert both[3:] == relatives([hard], 3, workers=1)
    assert both[3:] != relatives([hard], 3, seed=1, workers=1)


def test_workers_change_nothing(hard: Puzzle) -> None:
    puzzles = generate(3, Board.of(6), minimal=True, workers=1)
    assert relatives(puzzles, 4, workers=2) == relatives(puzzles, 4, workers=1)


def test_a_puzzle_without_enough_relatives_fills_up_with_itself() -> None:
    puzzle = generate(1, Board.of(4), (4, 4), workers=1)[0]
    found = relatives([puzzle], 500, workers=1)
    different = len({other.question for other in found})
    assert len(found) == 500
    assert found[different - 1 :] == [puzzle] * (501 - different)
    assert different < 500


def test_they_are_kept(tmp_path: Path, hard: Puzzle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = SudokuConfig.of(relatives=2)
    made = SudokuTask().enlarged([hard], config)
    monkeypatch.setattr(
        "tasks.sudoku.relatives.relatives", lambda *_, **__: pytest.fail("made again")
    )
    assert SudokuTask().enlarged([hard], config) == made


def test_training_sees_them_and_testing_does_not(
    tmp_path: Path, hard: Puzzle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "hard.txt"
    path.write_text(f"{hard.question}\n")
    config = PRESETS["hard"].changed(
        train_data=path,
        test_data=path,
        relatives=3,
        batch_size=1,
    )
    train, test = SudokuTask().load(config)
    assert train == test
    train = SudokuTask().enlarged(train, config)
    assert [puzzle.question for puzzle in test] == [hard.question]
    assert [puzzle.source for puzzle in train[1:]] == [SOURCE] * 3
    sampler = SudokuTask().sampler(train, config)
    x, classes = sampler(torch.arange(4), torch.Generator().manual_seed(0), 0.0)
    assert bool(SudokuTask().is_valid(x, classes, config).all())


def test_fewer_than_none_are_refused() -> None:
    with pytest.raises(ValueError, match="`relatives` must be 0 or more, got -1"):
        PRESETS["hard"].changed(relatives=-1)
