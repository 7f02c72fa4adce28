"""Geometry, text in and out, and the check of answers."""

from random import Random

import pytest
import torch

from tasks.sudoku.board import (
    SIDES,
    Board,
    PuzzleError,
    check_answer,
    format_grid,
    format_line,
    is_valid_solution,
    parse,
)
from tasks.sudoku.generate import shuffled_pattern

SOLVED_4 = "1234341221434321"
SOLVED_6 = "123456456123231564564231312645645312"
SOLVED_9 = "417632589893145267526987134289371456671524398354896712145768923738219645962453871"
SOLVED = [SOLVED_4, SOLVED_6, SOLVED_9]


@pytest.mark.parametrize("side", [4, 6, 8, 9, 10, 12, 16, 25])
def test_groups_cover_each_cell_three_times(side: int) -> None:
    board = Board.of(side)
    assert len(board.groups) == 3 * side
    assert all(len(set(group)) == side for group in board.groups)
    for cell in range(board.num_cells):
        assert [cell in group for group in board.groups].count(True) == 3


@pytest.mark.parametrize(("side", "num_peers"), [(4, 7), (6, 12), (8, 17), (9, 20), (16, 39)])
def test_peers_are_symmetric(side: int, num_peers: int) -> None:
    peers = Board.of(side).peers
    assert {len(others) for others in peers} == {num_peers}
    assert all(cell in peers[other] for cell, others in enumerate(peers) for other in others)


def test_boxes_of_a_6x6_board_are_two_rows_by_three_columns() -> None:
    board = Board.of(6)
    assert board.box_of[:12] == (0, 0, 0, 1, 1, 1) * 2
    assert not board.can_transpose


def test_same_side_gives_the_same_board() -> None:
    assert Board.of(9) is Board.for_length(81)


@pytest.mark.parametrize(
    ("side", "near"), [(0, "4"), (5, "4 and 6"), (13, "12 and 14"), (23, "22 and 24"), (49, "35")]
)
def test_unknown_side_is_refused(side: int, near: str) -> None:
    with pytest.raises(ValueError, match=rf"`side` must be .*: got {side}\. Near it: {near}\.$"):
        Board.of(side)


@pytest.mark.parametrize(
    ("side", "shape"),
    [
        (6, (2, 3)),
        (8, (2, 4)),
        (10, (2, 5)),
        (12, (3, 4)),
        (15, (3, 5)),
        (16, (4, 4)),
        (25, (5, 5)),
    ],
)
def test_boxes_are_as_square_as_can_be(side: int, shape: tuple[int, int]) -> None:
    board = Board.of(side)
    assert (board.box_rows, board.box_cols) == shape


@pytest.mark.parametrize("side", SIDES)
def test_every_side_reads_writes_draws_and_checks_its_digits(side: int) -> None:
    board = Board.of(side)
    answer = shuffled_pattern(board, Random(side))
    line = format_line(answer)
    assert parse(line) == parse(line.lower()) == parse(format_grid(answer)) == answer
    assert len({len(row) for row in format_grid(answer).splitlines()}) == 1
    question = [digit if cell % 3 else 0 for cell, digit in enumerate(answer)]
    check_answer(question, answer, board)
    rows = torch.tensor([answer, answer])
    rows[1, 0] = rows[1, 1]
    assert is_valid_solution(torch.zeros_like(rows), rows).tolist() == [True, False]


def test_letters_are_the_digits_above_nine() -> None:
    assert parse("a" + "." * 142 + "C")[::143] == [10, 12]
    assert format_line([16, 0, 10, 9]) == "G.A9"


@pytest.mark.parametrize("line", SOLVED)
def test_text_round_trip(line: str) -> None:
    question = "." + line[1:-1] + "."
    assert format_line(parse(question)) == question
    assert parse(question.replace(".", "0")) == parse(question)
    assert parse(format_grid(parse(question))) == parse(question)
    assert parse("\n ".join(question) + "\t\r\n") == parse(question)


def test_line_of_a_tensor() -> None:
    assert format_line(torch.tensor(parse("1..." * 2 + "." * 8, check_clues=False))) == (  # type: ignore[arg-type]
        "1...1..........."
    )


def test_drawing_marks_the_clues_and_what_took_their_place() -> None:
    question = parse("13..............")
    assert format_grid(parse(SOLVED_4), question).splitlines() == [
        "1* 2! | 3  4",
        "3  4  | 1  2",
        "------+------",
        "2  1  | 4  3",
        "4  3  | 2  1",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have 16 \(4x4\) or 36 \(6x6\) or 81 \(9x9\) cells, got 0\."),
        ("." * 80, r"must have 64 \(8x8\) or 81 \(9x9\) cells, got 80\."),
        ("." * 25, r"must have 16 \(4x4\) or 36 \(6x6\) cells, got 25\."),
        ("." * 2401, r"must have 1225 \(35x35\) cells, got 2401\."),
        (
            "." * 143 + "D",
            r"Digit D at \(row 12, .* a 12x12 board has the digits 1 to 9 and A to C",
        ),
        ("." * 99 + "b", r"Digit B at .* a 10x10 board has the digits 1 to 9 and A, and"),
        ("A..A" + "." * 140, r"Digit A stands twice in one row"),
        ("." * 5 + " x" + "." * 10, r"'x' at \(row 2, column 2\) is not allowed"),
        ("." * 80 + "٣", r"'٣' at \(row 9, column 9\) is not allowed"),
        ("12|34\n--+--\n34|x2\n34|12\n21|43", r"'x' at \(row 2, column 3\) is not allowed"),
        ("." * 80 + "!x", r"'!' at character 81 of 82 is not allowed"),
        ("." * 15 + "5", r"Digit 5 at \(row 4, column 4\) is too large: a 4x4 board has .* 1 to 4"),
        ("1..1" + "." * 12, r"1 stands twice in one row: at \(row 1, column 1\) and .*column 4\)"),
        ("2......." * 2, r"2 stands twice in one column: at \(row 1, column 1\) and at \(row 3"),
        ("3....3..........", r"3 stands twice in one box: at \(row 1, column 1\) and at \(row 2, "),
    ],
)
def test_bad_text_is_explained(text: str, message: str) -> None:
    with pytest.raises(PuzzleError, match=message):
        parse(text)


def test_wrong_length_for_the_expected_board() -> None:
    with pytest.raises(PuzzleError, match=r"must have 81 \(9x9\) cells, got 16\."):
        parse("." * 16, Board.of(9))


@pytest.mark.parametrize("line", SOLVED)
def test_every_single_change_of_an_answer_is_noticed(line: str) -> None:
    answer = torch.tensor(parse(line))
    side = Board.for_length(len(line)).side
    wrong = answer.repeat(len(line), 1)
    wrong.diagonal().copy_(answer % side + 1)
    blank = torch.zeros_like(wrong)
    assert not is_valid_solution(blank, wrong).any()
    assert is_valid_solution(blank, answer.expand_as(wrong)).all()
    # The grid is proper, but one clue of each puzzle says otherwise.
    assert not is_valid_solution(wrong, answer.expand_as(wrong)).any()


@pytest.mark.parametrize("digit", [0, -1, 5, 100])
def test_digits_out_of_range_are_wrong_answers(digit: int) -> None:
    answer = torch.tensor([parse(SOLVED_4)])
    question = torch.zeros_like(answer)
    answer[0, 3] = digit
    assert is_valid_solution(question, answer).tolist() == [False]


def test_small_integer_types_are_checked_too() -> None:
    answer = torch.tensor([parse(SOLVED_9)], dtype=torch.uint8)
    assert is_valid_solution(torch.zeros_like(answer), answer).tolist() == [True]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"got \(1, 16\) and \(2, 16\)"):
        is_valid_solution(torch.zeros(1, 16), torch.zeros(2, 16))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("." + SOLVED_4[1:], r"leaves \(row 1, column 1\) blank"),
        ("2" + SOLVED_4[1:], r"has 2 at \(row 1, column 1\), where the question has 1"),
        (SOLVED_4[:-1] + "2", r"answer is wrong. Digit 2 stands twice in one row: at \(row 4"),
    ],
)
def test_wrong_answers_are_explained(answer: str, message: str) -> None:
    question = parse("1" + "." * 15)
    with pytest.raises(PuzzleError, match=message):
        check_answer(question, parse(answer, check_clues=False), Board.of(4))
