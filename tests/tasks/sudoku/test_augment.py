"""Symmetric copies: valid, consistent, different, and reproducible."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.puzzles.puzzle import Puzzle
from tasks.puzzles.task import to_tensors
from tasks.sudoku.augment import augment, numbered_copies, reveal
from tasks.sudoku.board import SYMBOLS, Board, format_line, is_valid_solution, parse
from tasks.sudoku.config import PRESETS
from tasks.sudoku.generate import generate, symmetry_invariant
from tasks.sudoku.solver import search
from tasks.sudoku.task import SudokuTask


def puzzles_of(side: int) -> list[Puzzle]:
    return generate(8, Board.of(side), seed=5, workers=1)


def digits_of(puzzles: list[Puzzle], board: Board) -> tuple[Tensor, Tensor]:
    return to_tensors(puzzles, board.side, SYMBOLS)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(side=st.sampled_from([4, 6, 9]), seed=st.integers(0, 2**32))
def test_copies_are_valid_and_have_the_same_pattern(side: int, seed: int) -> None:
    board = Board.of(side)
    questions, answers = digits_of(puzzles_of(side), board)
    new_questions, new_answers = augment(questions, answers, board, generator(seed))
    assert is_valid_solution(new_questions, new_answers).all()
    assert torch.equal((new_questions > 0).sum(1), (questions > 0).sum(1))
    assert new_questions.dtype == torch.long


@pytest.mark.parametrize("side", [4, 6, 9])
def test_answers_map_with_their_questions(side: int) -> None:
    board = Board.of(side)
    questions, answers = digits_of(puzzles_of(side), board)
    new_questions, new_answers = augment(questions, answers, board, generator(0))
    for question, answer in zip(new_questions.tolist(), new_answers.tolist(), strict=True):
        assert search(question, board).solutions == [tuple(answer)]


@pytest.mark.parametrize("side", [4, 6, 9])
def test_symmetry_invariant_does_not_see_the_difference(side: int) -> None:
    board = Board.of(side)
    questions, answers = digits_of(puzzles_of(side), board)
    originals = [symmetry_invariant(format_line(line)) for line in questions.tolist()]
    for seed in range(10):
        copies, _ = augment(questions, answers, board, generator(seed))
        assert [symmetry_invariant(format_line(line)) for line in copies.tolist()] == originals


def test_every_puzzle_draws_its_own_symmetry() -> None:
    board = Board.of(9)
    questions, answers = (lines[:1].expand(64, -1) for lines in digits_of(puzzles_of(9), board))
    copies, _ = augment(questions, answers, board, generator(1))
    assert len({tuple(line) for line in copies.tolist()}) == 64


def test_reaches_the_whole_orbit_evenly() -> None:
    """The 288 grids of side 4 fall in two classes, of 96 and of 192."""
    board = Board.of(4)
    grid = torch.tensor([parse("1234341221434321")]).expand(20_000, -1)
    copies, _ = augment(grid, grid, board, generator(2))
    counts = Counter(tuple(line) for line in copies.tolist())
    assert len(counts) in (96, 192)
    assert max(counts.values()) < 1.5 * min(counts.values())


def test_boxes_that_are_not_square_never_transpose() -> None:
    """Row 1 of a copy is always a row of the original, never a column."""
    board = Board.of(6)
    question = torch.zeros(200, 36, dtype=torch.long)
    question[:, :6] = torch.arange(1, 7)
    copies, _ = augment(question, question, board, generator(3))
    full_rows = (copies.view(-1, 6, 6) > 0).all(2).sum(1)
    assert (full_rows == 1).all()


def test_square_boxes_transpose_half_the_time() -> None:
    board = Board.of(9)
    question = torch.zeros(1000, 81, dtype=torch.long)
    question[:, :9] = torch.arange(1, 10)
    copies, _ = augment(question, question, board, generator(3))
    full_rows = (copies.view(-1, 9, 9) > 0).all(2).sum()
    assert 400 < full_rows < 600


def test_the_generator_alone_decides() -> None:
    board = Board.of(6)
    questions, answers = digits_of(puzzles_of(6), board)
    first = augment(questions, answers, board, generator(7))
    torch.rand(3)
    second = augment(questions, answers, board, generator(7))
    third = augment(questions, answers, board, generator(8))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], third[0])


def test_tensors_hold_the_digits() -> None:
    puzzles = puzzles_of(4)
    questions, answers = digits_of(puzzles, Board.of(4))
    assert questions.tolist() == [parse(puzzle.question) for puzzle in puzzles]
    assert answers.tolist() == [parse(puzzle.answer) for puzzle in puzzles]
    assert [part.shape for part in digits_of([], Board.of(9))] == [(0, 81), (0, 81)]


def test_an_empty_batch_stays_empty() -> None:
    empty = torch.zeros(0, 81, dtype=torch.long)
    assert augment(empty, empty, Board.of(9), generator(0))[0].shape == (0, 81)


def test_puzzles_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Puzzle 0 has a question of 16 cells .* 9x9 has 81"):
        digits_of(puzzles_of(4), Board.of(9))


def test_numbered_copies_are_always_the_same_and_the_first_is_the_puzzle() -> None:
    board = Board.of(9)
    puzzles = generate(3, board, clues=(30, 34), seed=1)
    x, y = digits_of(puzzles, board)
    numbers = torch.tensor([0, 1, 2])
    keys = torch.arange(3) * 1000 + numbers
    first = numbered_copies(x, y, numbers, keys, board, seed=5)
    again = numbered_copies(x.flip(0), y.flip(0), numbers.flip(0), keys.flip(0), board, seed=5)
    assert torch.equal(first[0], again[0].flip(0))
    assert torch.equal(first[0][0], x[0])
    assert not torch.equal(first[0][1], x[1])
    assert is_valid_solution(*first).all()
    for puzzle, copy in zip(puzzles, first[0], strict=True):
        assert symmetry_invariant(format_line(copy.tolist())) == symmetry_invariant(puzzle.question)
    other = numbered_copies(x, y, numbers, keys, board, seed=6)
    assert not torch.equal(first[0][1], other[0][1])


def test_numbered_copies_are_as_varied_as_random_ones() -> None:
    board = Board.of(9)
    x, y = digits_of(generate(1, board, clues=(30, 34), seed=1), board)
    count = 2000
    numbers = torch.arange(1, count + 1)
    copies, _ = numbered_copies(
        x.expand(count, -1), y.expand(count, -1), numbers, numbers, board, seed=0
    )
    assert len(copies.unique(dim=0)) == count
    # Every cell is blank as often as any other, within six standard deviations.
    share = (x == 0).float().mean()
    spread = (share * (1 - share) / count).sqrt()
    assert ((copies == 0).float().mean(0) - share).abs().max() < 6 * spread


def test_reveal_fills_in_at_most_so_many_blanks_and_nothing_else() -> None:
    board = Board.of(9)
    x, y = digits_of(generate(4, board, clues=(30, 34), seed=1), board)
    x, y = x.repeat(200, 1), y.repeat(200, 1)
    easier = reveal(x, y, 12, generator(3))
    filled = (easier != x).sum(1)
    assert set(filled.tolist()) == set(range(13))
    assert torch.equal(torch.where(easier == x, y, easier), y)
    assert torch.equal(easier[x > 0], x[x > 0])
    assert (reveal(x, y, 81, generator(3)) > 0).all(1).any()


def test_training_puzzles_are_easier_at_first_and_not_in_the_last_half() -> None:
    config = PRESETS["standard"].changed(extra_clues=20)
    puzzles = generate(2, config.data.board, clues=(30, 34), seed=1)
    sample = SudokuTask().sampler(puzzles, config)
    rows = torch.zeros(300, dtype=torch.long)
    blanks = [(sample(rows, generator(0), at)[0] == 0).float().sum(1) for at in (0, 0.25, 0.5, 1)]
    given = puzzles[0].question.count(".") + puzzles[0].question.count("0")
    assert blanks[0].mean() < blanks[1].mean() < given
    assert blanks[0].min() == given - 20
    assert (blanks[2] == given).all()
    assert (blanks[3] == given).all()
