"""The exact solver, against brute force and real puzzles."""

import csv
from itertools import permutations, product
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.sudoku import solver as solver_module
from tasks.sudoku.board import Board, PuzzleError, check_answer, parse
from tasks.sudoku.generate import shuffled_pattern
from tasks.sudoku.solver import complete, engine_for, search

EASY = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
HARD = ".....8..1.6.9..2...4.52.9..4..6......9..45..6....924..9......7........3.35.2..6.."


@pytest.fixture(scope="module")
def all_4x4_grids() -> set[tuple[int, ...]]:
    """Every full grid, by brute force over all choices of four rows."""
    groups = Board.of(4).groups
    rows = list(permutations(range(1, 5)))
    grids = ((*a, *b, *c, *d) for a, b, c, d in product(rows, repeat=4))
    return {grid for grid in grids if all(len({grid[i] for i in g}) == 4 for g in groups[4:])}


def test_finds_all_grids(all_4x4_grids: set[tuple[int, ...]]) -> None:
    solutions = search([0] * 16, Board.of(4), limit=1000).solutions
    assert len(solutions) == len(all_4x4_grids) == 288
    assert set(solutions) == all_4x4_grids


@settings(max_examples=200, deadline=None, derandomize=True)
@given(clues=st.dictionaries(st.integers(0, 15), st.integers(1, 4), max_size=7))
def test_finds_exactly_the_grids_that_keep_the_clues(
    all_4x4_grids: set[tuple[int, ...]], clues: dict[int, int]
) -> None:
    puzzle = [clues.get(cell, 0) for cell in range(16)]
    expected = {grid for grid in all_4x4_grids if all(grid[cell] == clues[cell] for cell in clues)}
    found = search(puzzle, Board.of(4), limit=1000).solutions
    assert len(found) == len(expected)
    assert set(found) == expected


def test_solves_published_puzzles() -> None:
    board = Board.of(9)
    for line in (EASY, HARD):
        puzzle = parse(line)
        [solution] = search(puzzle, board).solutions
        assert all(clue in (0, digit) for clue, digit in zip(puzzle, solution, strict=True))
        assert all(len({solution[cell] for cell in group}) == 9 for group in board.groups)


def test_rating_counts_guesses_of_the_whole_proof() -> None:
    board = Board.of(9)
    assert search(parse(EASY), board).num_guesses == 0
    assert search(parse(HARD), board).num_guesses == 226
    assert search(parse(HARD), board, limit=1).num_guesses <= 226


def test_limit_stops_the_search() -> None:
    for limit in (1, 2, 5):
        assert len(search([0] * 81, Board.of(9), limit).solutions) == limit


def test_a_full_grid_is_its_own_solution() -> None:
    [grid] = search(parse(EASY), Board.of(9)).solutions
    assert search(grid, Board.of(9)).solutions == [grid]
    wrong = (*grid[:-1], grid[-1] % 9 + 1)
    assert search(wrong, Board.of(9)).solutions == []


def test_no_solution_is_refused() -> None:
    with pytest.raises(PuzzleError, match="has no solution"):
        complete("test", parse("12....3....4...."), Board.of(4))


def test_many_solutions_are_refused_with_a_witness() -> None:
    with pytest.raises(PuzzleError, match=r"more than one solution: \(row \d, column \d\) may be"):
        complete("test", [0] * 16, Board.of(4))


def test_a_search_gives_up_after_its_guesses() -> None:
    board = Board.of(9)
    whole = search(parse(HARD), board)
    assert not whole.gave_up
    assert search(parse(HARD), board, most_guesses=whole.num_guesses + 1) == whole
    short = search(parse(HARD), board, most_guesses=whole.num_guesses)
    assert short.gave_up
    assert short.num_guesses == whole.num_guesses


def test_a_large_puzzle_that_exhausts_its_guesses_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(solver_module, "_EFFORT", 10 * 16**3)
    with pytest.raises(PuzzleError, match=r"no solution, within 10 guesses, and gave up: on a 16x"):
        complete("test", [0] * 256, Board.of(16))


@pytest.mark.parametrize("side", [4, 6, 9, 12])
def test_singles_are_alone_in_a_constraint(side: int) -> None:
    """Counted one by one: a cell's digits, and the places of a digit in each unit."""
    board, rng = Board.of(side), Random(side)
    engine, cells = engine_for(board), board.num_cells
    constraints = [[cell + cells * digit for digit in range(side)] for cell in range(cells)]
    constraints += [[c + cells * d for c in unit] for unit in board.groups for d in range(side)]
    full = sum(engine.clue_bits(shuffled_pattern(board, rng)))
    for share in (0.0, 0.02, 0.5, 0.9):
        # With a full grid in it, no constraint is empty.
        state = full | sum(1 << i for i in range(engine.num_bits) if rng.random() < share)
        there = [[i for i in constraint if state >> i & 1] for constraint in constraints]
        assert engine._singles(state) == sum({1 << some[0] for some in there if len(some) == 1})
        assert engine._singles(state & ~sum(1 << i for i in constraints[-1])) is None


@pytest.mark.parametrize("side", [8, 10, 12, 16])
def test_solves_puzzles_of_other_sizes(side: int) -> None:
    board = Board.of(side)
    answer = shuffled_pattern(board, Random(side))
    question = [digit if cell % 4 else 0 for cell, digit in enumerate(answer)]
    for solution in search(question, board).solutions:
        check_answer(question, solution, board)
    assert tuple(answer) in search(question, board, limit=10_000, most_guesses=20_000).solutions


def test_is_needed_tells_which_clues_a_puzzle_can_spare() -> None:
    board = Board.of(9)
    engine = engine_for(board)
    clues = engine.clue_bits(parse(EASY))
    for clue in clues:
        others = [other for other in clues if other != clue]
        found, _ = engine.search(*engine.start(others), limit=2)
        assert engine.is_needed(clue, others) == (len(found) == 2)


def test_real_answers(shared_data: Path) -> None:
    with open(shared_data / "sudoku_extreme_like_train_1k.csv", newline="") as file:
        rows = list(csv.DictReader(file))[:100]
    for row in rows:
        assert complete("test", parse(row["question"]), Board.of(9)).answer == row["answer"]


def test_real_puzzles_with_many_solutions(shared_data: Path) -> None:
    lines = (shared_data / "sudoku_many_solutions.txt").read_text().split()
    assert len(lines) == 50
    for line in lines:
        with pytest.raises(PuzzleError, match="more than one solution"):
            complete("test", parse(line), Board.of(9))
