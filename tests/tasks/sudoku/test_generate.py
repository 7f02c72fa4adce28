"""Generated puzzles: unique, minimal where promised, reproducible, and kept apart."""

import subprocess
import sys
from itertools import permutations

import pytest

from tasks.puzzles import workers as workers_module
from tasks.puzzles.puzzle import Puzzle
from tasks.sudoku import generate as generate_module
from tasks.sudoku.board import Board, check_answer, parse
from tasks.sudoku.generate import generate, symmetry_invariant, train_and_test
from tasks.sudoku.solver import search


def count_slowly(puzzle: list[int], board: Board, limit: int = 2) -> int:
    """Solutions up to `limit`, by trying digits in the cell that allows the fewest."""
    best: list[int] | None = None
    where = -1
    for cell, digit in enumerate(puzzle):
        if not digit:
            seen = {puzzle[peer] for peer in board.peers[cell]}
            options = [option for option in range(1, board.side + 1) if option not in seen]
            if best is None or len(options) < len(best):
                best, where = options, cell
    if best is None:
        return 1
    total = 0
    for option in best:
        total += count_slowly([*puzzle[:where], option, *puzzle[where + 1 :]], board, limit - total)
        if total >= limit:
            break
    return total


def count_fast(puzzle: list[int], board: Board) -> int:
    return len(search(puzzle, board).solutions)


def count_both_ways(puzzle: list[int], board: Board) -> int:
    slowly = count_slowly(puzzle, board)
    assert count_fast(puzzle, board) == slowly
    return slowly


def num_clues(puzzle: Puzzle) -> int:
    return len(puzzle.question) - puzzle.question.count(".")


RECIPES = [
    (4, None, False, 60),
    (4, (6, 8), False, 60),
    (6, None, False, 20),
    (6, (9, 11), False, 30),
    (9, (30, 34), False, 40),
    (9, (22, 26), True, 20),
    (9, None, False, 10),
    (8, (26, 30), False, 10),
    (10, (50, 54), False, 10),
    (12, (65, 70), False, 5),
    (16, (128, 132), False, 3),
]


@pytest.mark.parametrize(("side", "clues", "minimal", "count"), RECIPES)
def test_every_puzzle_keeps_its_promises(
    side: int, clues: tuple[int, int] | None, minimal: bool, count: int
) -> None:
    board = Board.of(side)
    count_solutions = count_both_ways if side < 9 or side == 10 else count_fast
    puzzles = generate(count, board, clues, minimal=minimal, seed=11, workers=1)
    assert len({puzzle.question for puzzle in puzzles}) == len(puzzles) == count
    for puzzle in puzzles:
        grid = parse(puzzle.question, board)
        check_answer(grid, parse(puzzle.answer, board), board)
        assert count_solutions(grid, board) == 1
        assert puzzle.source == "generated"
        assert puzzle.rating == search(grid, board).num_guesses
        if clues is not None:
            assert clues[0] <= num_clues(puzzle) <= clues[1]
        if minimal or clues is None:
            for cell in filter(grid.__getitem__, range(board.num_cells)):
                assert count_solutions([*grid[:cell], 0, *grid[cell + 1 :]], board) == 2


def test_clue_targets_are_spread_over_the_range() -> None:
    puzzles = generate(60, Board.of(9), (30, 34), seed=1, workers=1)
    assert {num_clues(puzzle) for puzzle in puzzles} == {30, 31, 32, 33, 34}


def test_seed_decides_and_a_longer_run_continues_a_shorter_one() -> None:
    board = Board.of(6)
    puzzles = generate(12, board, seed=3, workers=1)
    assert generate(12, board, seed=3, workers=1) == puzzles
    assert generate(5, board, seed=3, workers=1) == puzzles[:5]
    assert generate(12, board, seed=4, workers=1) != puzzles


def test_workers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module._Recipe, "fewest_per_worker", 2)
    board = Board.of(4)
    alone = generate(12, board, (5, 7), seed=9, workers=1)
    assert generate(12, board, (5, 7), seed=9, workers=2) == alone


def test_a_failing_worker_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module._Recipe, "fewest_per_worker", 1)
    monkeypatch.setattr(workers_module.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"exit status 1\. Use `workers=1`"):
        generate(4, Board.of(4), workers=2)


@pytest.mark.parametrize("module", ["generate", "relatives"])
def test_workers_do_not_load_torch(module: str) -> None:
    code = f"import sys, tasks.sudoku.{module}; sys.exit('torch' in sys.modules)"
    root = workers_module._PACKAGE_ROOT
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize(
    ("side", "clues"), [(9, (16, 30)), (9, (30, 29)), (4, (4, 17)), (6, (7, 9)), (16, (14, 100))]
)
def test_impossible_ranges_are_refused(side: int, clues: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"`clues` must be \(low, high\) with"):
        generate(1, Board.of(side), clues)


def test_hopeless_ranges_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module, "_MAX_GRIDS", 3)
    with pytest.raises(ValueError, match="None of 3 random grids led to a puzzle with 17 to 17"):
        generate(1, Board.of(9), (17, 17))


def test_a_large_board_gives_up_where_its_clues_are_too_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generate_module, "_MAX_LARGE_GRIDS", 1)
    monkeypatch.setattr(generate_module, "_CLUE_GUESSES", 5)
    with pytest.raises(ValueError, match="None of 1 random grids led to a puzzle with 40 to 40"):
        generate(1, Board.of(12), (40, 40))
    with pytest.raises(ValueError, match="None of 1 random grids led to a minimal puzzle"):
        generate(1, Board.of(12), (20, 60), minimal=True)


def test_a_large_board_starts_with_a_pattern_where_no_grid_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generate_module, "_LARGEST_SEARCHED", 9)
    first, second = generate(2, Board.of(16), (150, 150), workers=1)
    assert first.answer != second.answer
    assert len(set(first.answer)) == 16


def test_asking_for_more_puzzles_than_exist_gives_up() -> None:
    with pytest.raises(ValueError, match=r"Found only \d+ of 289 different puzzles"):
        generate(289, Board.of(4), (16, 16), workers=1)


@pytest.mark.parametrize(
    ("side", "clues"), [(4, None), (6, (9, 11)), (9, (30, 34)), (12, (70, 80))]
)
def test_training_and_test_sets_are_disjoint(side: int, clues: tuple[int, int] | None) -> None:
    board = Board.of(side)
    train, test = train_and_test(60, 30, board, clues, seed=2, workers=1)
    assert (len(train), len(test)) == (60, 30)
    assert train == generate(60, board, clues, seed=2, workers=1)
    assert not {p.question for p in train} & {p.question for p in test}
    if side != 4:
        keys = {symmetry_invariant(p.question) for p in train}
        assert not keys & {symmetry_invariant(p.question) for p in test}


def test_possible_copies_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an invariant that sees only the number of clues, the test set must avoid those."""

    def see_clues(question: str) -> int:
        return len(question) - question.count(".")

    monkeypatch.setattr(generate_module, "symmetry_invariant", see_clues)
    train, test = train_and_test(1, 20, Board.of(6), (12, 20), seed=0, workers=1)
    assert num_clues(train[0]) not in {num_clues(puzzle) for puzzle in test}


def canonical_4x4(grid: list[int]) -> tuple[int, ...]:
    """The least of all symmetric copies of a 4x4 puzzle."""
    lines = [
        [2 * band + i for band, pair in zip(bands, (first, second), strict=True) for i in pair]
        for bands in permutations((0, 1))
        for first in permutations((0, 1))
        for second in permutations((0, 1))
    ]
    copies = []
    for rows in lines:
        for columns in lines:
            cells = [4 * row + column for row in rows for column in columns]
            for places in (cells, [cells[4 * (i % 4) + i // 4] for i in range(16)]):
                names = {0: 0}
                copies.append(tuple(names.setdefault(grid[cell], len(names)) for cell in places))
    return min(copies)


def test_invariant_tells_4x4_puzzles_apart_exactly() -> None:
    """On minimal 4x4 puzzles it happens to be complete: 36 classes, as many as there are."""
    puzzles = generate(800, Board.of(4), seed=0, workers=1)
    classes: dict[int, set[tuple[int, ...]]] = {}
    for puzzle in puzzles:
        key = symmetry_invariant(puzzle.question)
        classes.setdefault(key, set()).add(canonical_4x4(parse(puzzle.question)))
    assert all(len(forms) == 1 for forms in classes.values())
    assert len(classes) == len(set.union(*classes.values())) <= 36


def test_invariant_sees_another_clue() -> None:
    """Clues added to one puzzle give as many different puzzles, and none is the puzzle itself."""
    puzzle = generate(1, Board.of(9), (30, 34), workers=1)[0]
    blanks = [cell for cell, character in enumerate(puzzle.question) if character == "."]
    keys = {symmetry_invariant(puzzle.question)}
    for cell in blanks:
        more = puzzle.question[:cell] + puzzle.answer[cell] + puzzle.question[cell + 1 :]
        keys.add(symmetry_invariant(more))
    assert len(keys) == 1 + len(blanks)
