"""Mazes as text, canonical labels, and the check of any shortest path."""

import csv
from pathlib import Path

import pytest
import torch
from mazes import count_paths

from tasks.maze.maze import (
    PATH,
    MazeError,
    format_grid,
    format_line,
    is_shortest,
    label,
    parse,
    parse_answer,
    shortest_path,
)

OPEN = "S  \n   \n  G"


def test_reads_and_writes_itself() -> None:
    codes = parse(OPEN)
    assert codes == [2, 1, 1, 1, 1, 1, 1, 1, 3]
    assert format_grid(codes) == OPEN
    assert parse(format_line(codes)) == codes
    assert parse(OPEN.replace("\n", "\r\n") + "\n", side=3) == codes


def test_of_six_paths_down_comes_first() -> None:
    codes = parse(OPEN)
    assert count_paths(codes) == 6
    assert shortest_path(codes) == [0, 3, 6, 7, 8]
    assert format_grid(label(codes)) == "S  \no  \nooG"


def test_left_comes_before_right_and_right_before_up() -> None:
    assert format_line(label(parse(" S    G  "))).count("o") == 2
    # Round the wall in the middle: left, since left is looked at before right.
    assert format_grid(label(parse(" S \n # \n G "))) == "oS \no# \noG "
    # From below: right and up reach the goal as fast; right is looked at first.
    assert format_grid(label(parse("  G\n   \nS  "))) == "  G\n  o\nSoo"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S  \n  x\n  G", r"got 'x' at \(row 2, column 3\)"),
        ("S  x", r"got 'x' at \(row 2, column 2\)"),
        ("S xG ", "got 'x' at character 3 of 5"),
        ("S  \n o \n  G", r"got 'o' at \(row 2, column 2\)"),
        ("S   \n   \n  G", "row 1 has 4"),
        ("S      G", "must be a square: got 8 cells"),
        ("   \n   \n  G", "exactly one start 'S', got 0"),
        ("SS \n   \n  G", "exactly one start 'S', got 2"),
        ("S  \n   \n   ", "exactly one goal 'G', got 0"),
        ("S G\n   \n  G", "exactly one goal 'G', got 2"),
        ("", "must be a square: got 0 cells"),
    ],
)
def test_what_is_no_maze_is_refused(text: str, message: str) -> None:
    with pytest.raises(MazeError, match=message):
        parse(text)


def test_another_side_and_an_unreachable_goal_are_refused() -> None:
    with pytest.raises(MazeError, match="Expected a maze of 4x4 cells, got 3x3"):
        parse(OPEN, side=4)
    with pytest.raises(MazeError, match="cannot be reached"):
        shortest_path(parse("S# \n## \n  G"))
    assert count_paths(parse("S# \n## \n  G")) == 0


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Soo\n  o\n  G", True),  # not the canonical one
        ("S  \no  \nooG", True),
        ("So \n oo\n  G", True),
        ("Soo\no o\nooG", False),  # two paths
        ("So \n   \n oG", False),  # a gap
        ("S  \n   \n  G", False),  # none
        ("S  \no  \no#G", False),  # a wall that is not there
        ("S  \noS \nooG", False),
    ],
)
def test_any_shortest_path_counts_and_nothing_else(answer: str, right: bool) -> None:
    question = torch.tensor([parse(OPEN)])
    codes = ["# SGo".index(symbol) for symbol in answer.replace("\n", "")]
    assert is_shortest(question, torch.tensor([codes])).tolist() == [right]


def test_a_detour_is_no_shortest_path() -> None:
    question = parse("S    \n     \n     \n     \nG    ")
    detour = parse_answer("Soo  \n  o  \n  o  \n  o  \nGoo  ")
    assert not is_shortest(torch.tensor([question]), torch.tensor([detour])).item()


def test_every_published_label_is_the_canonical_path(shared_data: Path) -> None:
    with open(shared_data / "maze_30x30_hard_train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1000
    for row in rows:
        answer = label(parse(row["question"], side=30))
        assert format_line(answer) == row["answer"]
        assert answer.count(PATH) + 1 == int(row["rating"])
    answers = torch.tensor([parse_answer(row["answer"]) for row in rows[:50]])
    questions = torch.tensor([parse(row["question"]) for row in rows[:50]])
    assert is_shortest(questions, answers).all()
