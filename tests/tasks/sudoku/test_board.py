"""Geometry, text in and out, and the check of answers."""

import pytest
import torch

from tasks.sudoku.board import (
    Board,
    PuzzleError,
    check_answer,
    format_grid,
    format_line,
    is_valid_solution,
    parse,
)

SOLVED_4 = "1234341221434321"
SOLVED_6 = "123456456123231564564231312645645312"
SOLVED_9 = "417632589893145267526987134289371456671524398354896712145768923738219645962453871"
SOLVED = [SOLVED_4, SOLVED_6, SOLVED_9]


@pytest.mark.parametrize("side", [4, 6, 9])
def test_groups_cover_each_cell_three_times(side: int) -> None:
    board = Board.of(side)
    assert len(board.groups) == 3 * side
    assert all(len(set(group)) == side for group in board.groups)
    for cell in range(board.num_cells):
        assert [cell in group for group in board.groups].count(True) == 3


@pytest.mark.parametrize(("side", "num_peers"), [(4, 7), (6, 12), (9, 20)])
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


@pytest.mark.parametrize("side", [0, 5, 16])
def test_unknown_side_is_refused(side: int) -> None:
    with pytest.raises(ValueError, match=f"`side` must be 4, 6 or 9, got {side}"):
        Board.of(side)


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


def test_drawing_marks_the_clues() -> None:
    question = parse("1...............")
    assert format_grid(parse(SOLVED_4), question).splitlines() == [
        "1* 2  | 3  4",
        "3  4  | 1  2",
        "------+------",
        "2  1  | 4  3",
        "4  3  | 2  1",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have 16 \(4x4\), 36 \(6x6\) or 81 \(9x9\) cells, got 0\."),
        ("." * 80, r"must have 16 \(4x4\), 36 \(6x6\) or 81 \(9x9\) cells, got 80\."),
        ("." * 5 + " x" + "." * 10, r"'x' at position 7 is not allowed"),
        ("." * 80 + "٣", r"'٣' at position 81 is not allowed"),
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
