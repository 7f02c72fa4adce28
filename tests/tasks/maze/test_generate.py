"""Generated mazes keep what was asked for, and depend on seed and number alone."""

import subprocess
import sys

import pytest
from mazes import count_paths

from tasks.maze.generate import generate, train_and_test
from tasks.maze.maze import WALL, format_line, label, parse
from tasks.puzzles.puzzle import smallest_copy


@pytest.mark.parametrize(("side", "low", "high"), [(9, 14, None), (9, 12, 13), (12, 20, 26)])
def test_hard_mazes_keep_length_and_share_of_walls(side: int, low: int, high: int | None) -> None:
    mazes = generate(60, side, min_path=low, max_path=high, seed=1)
    for maze in mazes:
        codes = parse(maze.question, side)
        assert format_line(label(codes)) == maze.answer
        assert low <= maze.rating + 1 <= (high or side * side)
        assert int(0.3 * side * side) <= codes.count(WALL) <= int(0.5 * side * side)
    assert len({maze.question for maze in mazes}) == 60


def test_perfect_mazes_have_one_path_of_uniform_length() -> None:
    mazes = generate(200, 30, kind="unique", min_path=100, max_path=140, seed=2)
    lengths = [maze.rating + 1 for maze in mazes]
    assert min(lengths) < 105
    assert max(lengths) > 135
    # Uniform lengths have mean 120 and deviation 11.8, so that of 200 has a deviation of 0.84.
    assert abs(sum(lengths) / 200 - 120) < 4
    for maze in mazes[:30]:
        codes = parse(maze.question)
        assert count_paths(codes) == 1
        # A tree of 225 rooms has 224 doors.
        assert sum(code != WALL for code in codes) == 449


def test_a_maze_depends_on_its_number_alone() -> None:
    whole = generate(6, 9, min_path=10, seed=3)
    assert generate(3, 9, min_path=10, seed=3, start_index=3) == whole[3:]
    assert generate(6, 9, min_path=10, seed=4) != whole


def test_workers_change_nothing() -> None:
    alone = generate(50, 9, min_path=10, seed=3, start_index=5, workers=1)
    assert generate(50, 9, min_path=10, seed=3, start_index=5, workers=2) == alone


def test_distribution_is_that_of_plain_rejection() -> None:
    """Walls, start and goal drawn together and kept if far enough: same mean length and walls."""
    from random import Random

    from tasks.maze.maze import FREE, GOAL, START, MazeError, shortest_path

    random, plain = Random(0), []
    while len(plain) < 400:
        walls = random.sample(range(36), random.randint(int(0.3 * 36), int(0.5 * 36)))
        codes = [WALL if cell in walls else FREE for cell in range(36)]
        start, goal = random.sample([cell for cell in range(36) if codes[cell] == FREE], 2)
        codes[start], codes[goal] = START, GOAL
        try:
            length = len(shortest_path(codes))
        except MazeError:
            continue
        if length >= 12:
            plain.append((length, len(walls)))
    ours = generate(400, 6, min_path=12, seed=5)
    lengths = sum(maze.rating + 1 for maze in ours) / 400
    walls = sum(maze.question.count("#") for maze in ours) / 400
    # Both deviations are below 1.7, so those of the differences below 0.12.
    assert abs(lengths - sum(row[0] for row in plain) / 400) < 0.4
    assert abs(walls - sum(row[1] for row in plain) / 400) < 0.4


def test_sets_share_no_maze_in_disguise() -> None:
    train, test = train_and_test(150, 150, 4, min_path=6, seed=0)
    assert (len(train), len(test)) == (150, 150)
    assert not {smallest_copy(m.question) for m in train} & {
        smallest_copy(m.question) for m in test
    }


def test_smallest_copy_knows_all_eight_copies() -> None:
    question = "S#  G    "
    rows = [question[i : i + 3] for i in (0, 3, 6)]
    turned = "".join("".join(column) for column in zip(*rows[::-1], strict=True))
    mirrored = "".join(row[::-1] for row in rows)
    assert smallest_copy(question) == smallest_copy(turned) == smallest_copy(mirrored)
    assert smallest_copy(question) != smallest_copy("S # G    ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "easy"}, "must be one of hard, unique, got 'easy'"),
        ({"side": 2}, "`side` must be at least 3"),
        ({"count": -1}, "`count` must be 0 or more"),
        ({"min_path": 30}, "2 <= min <= max <= 25"),
        ({"min_path": 6, "max_path": 5}, "2 <= min <= max"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(**{"count": 1, "side": 5, "min_path": 4, **options})  # type: ignore[arg-type]


def test_hopeless_settings_end_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.maze.generate._MAX_DRAWS", 50)
    with pytest.raises(ValueError, match=r"No hard maze of 5x5 .* in 50 draws"):
        generate(1, 5, min_path=24)


def test_workers_need_no_torch() -> None:
    code = "import sys, tasks.maze.generate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
