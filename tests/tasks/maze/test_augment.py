"""Symmetric copies: the right cells, the label of the copy itself, all eight, reproducible."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.maze import augment as augment_module
from tasks.maze.augment import Symmetries
from tasks.maze.maze import (
    FREE,
    GOAL,
    PATH,
    START,
    SYMBOLS,
    WALL,
    MazeError,
    format_line,
    is_shortest,
    label,
    parse,
    parse_answer,
)
from tasks.puzzles.puzzle import Puzzle
from tasks.puzzles.task import to_tensors


def random_mazes(count: int, side: int, seed: int = 0) -> list[Puzzle]:
    """S in a corner and G somewhere else, whatever wall falls between, if it can be reached."""
    draw = torch.Generator().manual_seed(seed)
    mazes: list[Puzzle] = []
    while len(mazes) < count:
        codes = torch.full((side * side,), FREE)
        codes[torch.rand(side * side, generator=draw) < 0.3] = WALL
        codes[0] = START
        codes[torch.randint(1, side * side, (1,), generator=draw)] = GOAL
        question = codes.tolist()
        try:
            answer = label(question)
        except MazeError:
            continue
        mazes.append(Puzzle("test", format_line(question), format_line(answer), 0))
    return mazes


def questions_of(count: int, side: int, seed: int = 0) -> Tensor:
    return to_tensors(random_mazes(count, side, seed), side, SYMBOLS)[0]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(side=st.integers(2, 9), seed=st.integers(0, 2**32))
def test_every_label_is_that_of_its_question(side: int, seed: int) -> None:
    questions = questions_of(4, side, seed)
    symmetries = Symmetries(questions)
    for _ in range(3):  # the later ones partly from the memory
        copies, labels = symmetries.batch(torch.arange(4), generator(seed))
        assert labels.tolist() == [label(question) for question in copies.tolist()]
        assert is_shortest(copies, labels).all()
        seed += 1
    assert copies.dtype == labels.dtype == torch.long


def test_a_turned_label_would_be_wrong() -> None:
    """In an empty square the label goes along two sides, and not the same two in a mirror."""
    question = [FREE] * 16
    question[0], question[15] = START, GOAL
    symmetries = Symmetries(torch.tensor([question]))
    copies, labels = symmetries.batch(torch.zeros(200, dtype=torch.long), generator(0))
    unchanged = (copies == torch.tensor(question)).all(1)
    # Identity and one reflection; the label stays where the reflection would turn it.
    assert 20 < int(unchanged.sum()) < 80
    assert len({tuple(line) for line in labels[unchanged].tolist()}) == 1
    assert labels[unchanged][0].tolist() == label(question)


def test_each_copy_is_a_rotation_or_a_reflection_and_all_come_up_evenly() -> None:
    question = questions_of(1, 5)
    grid = question.view(5, 5)
    turned = [grid.rot90(turns) for turns in range(4)]
    group = [*turned, *(copy.flip(0) for copy in turned)]
    names = [tuple(copy.flatten().tolist()) for copy in group]
    assert len(set(names)) == 8
    symmetries = Symmetries(question)
    copies, _ = symmetries.batch(torch.zeros(8000, dtype=torch.long), generator(1))
    counts = Counter(tuple(copy) for copy in copies.tolist())
    assert set(counts) == set(names)
    assert all(850 < number < 1150 for number in counts.values())


def test_rows_pick_the_mazes() -> None:
    questions = questions_of(5, 6)
    rows = torch.tensor([3, 3, 0])
    copies, _ = Symmetries(questions).batch(rows, generator(2))
    for row, copy in zip(rows.tolist(), copies.view(-1, 6, 6), strict=True):
        orbit = [
            turned
            for turns in range(4)
            for turned in (copy.rot90(turns), copy.rot90(turns).flip(0))
        ]
        assert any(torch.equal(turned.flatten(), questions[row]) for turned in orbit)


def test_each_copy_is_labelled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(codes: list[int]) -> list[int]:
        calls.append(tuple(codes))
        return label(codes)

    monkeypatch.setattr(augment_module, "label", counted)
    symmetries = Symmetries(questions_of(2, 7))
    assert not calls
    source = generator(3)
    for _ in range(100):
        symmetries.batch(torch.arange(2), source)
    assert len(calls) == len(set(calls)) == 16


def test_the_generator_alone_decides() -> None:
    questions, rows = questions_of(20, 5), torch.arange(20)
    used = Symmetries(questions)
    used.batch(rows, generator(5))
    torch.rand(3)
    first = Symmetries(questions).batch(rows, generator(7))
    second = used.batch(rows, generator(7))
    third = used.batch(rows, generator(8))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], third[0])


def test_a_batch_is_not_a_window_on_the_memory() -> None:
    questions = questions_of(3, 5)
    before = questions.clone()
    symmetries = Symmetries(questions)
    copies, labels = symmetries.batch(torch.arange(3), generator(4))
    kept = copies.clone(), labels.clone()
    copies.zero_()
    labels.zero_()
    again = symmetries.batch(torch.arange(3), generator(4))
    assert torch.equal(questions, before)
    assert torch.equal(again[0], kept[0])
    assert torch.equal(again[1], kept[1])


def test_tensors_hold_the_codes() -> None:
    mazes = random_mazes(8, 6)
    questions, answers = to_tensors(mazes, 6, SYMBOLS)
    assert questions.tolist() == [parse(maze.question) for maze in mazes]
    assert answers.tolist() == [parse_answer(maze.answer) for maze in mazes]
    assert (answers == PATH).any()
    assert [part.shape for part in to_tensors([], 30, SYMBOLS)] == [(0, 900), (0, 900)]


def test_an_empty_batch_stays_empty() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    copies, labels = Symmetries(questions_of(2, 4)).batch(nothing, generator(0))
    assert copies.shape == labels.shape == (0, 16)


def test_mazes_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Puzzle 0 has a question of 16 cells .* 30x30 has 900"):
        to_tensors(random_mazes(2, 4), 30, SYMBOLS)
