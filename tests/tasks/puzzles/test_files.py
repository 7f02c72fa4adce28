"""Puzzle files that nobody wrote with care: each bad line costs itself, and little memory."""

import dataclasses
import re
import tracemalloc
import warnings
from pathlib import Path

import pytest

from tasks.maze.files import read_mazes
from tasks.maze.maze import MazeError
from tasks.maze.task import MazeTask
from tasks.puzzles.files import write_puzzles
from tasks.puzzles.puzzle import Puzzle
from tasks.sudoku.__main__ import main
from tasks.sudoku.board import PuzzleError
from tasks.sudoku.files import read_puzzles
from tasks.sudoku.task import SudokuTask

HEADER = "source,question,answer,rating\n"
QUESTION, ANSWER = "1.....3..4.....2", "1324423124133142"
GOOD = f"mine,{QUESTION},{ANSWER},0\n"
PUZZLE = Puzzle("mine", QUESTION, ANSWER, 0)


def write(folder: Path, text: str | bytes, name: str = "puzzles.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("source", ["\r", "a\rb", "\r\n", "\n\r", '"\r', ",\r", "\x85\u2028\x1c"])
def test_line_ends_in_a_source_come_back(source: str, tmp_path: Path) -> None:
    puzzles = [Puzzle(source, QUESTION, ANSWER, 0), PUZZLE]
    write_puzzles(tmp_path / "set.csv", puzzles)
    assert read_puzzles(tmp_path / "set.csv") == puzzles


def test_a_file_name_that_is_no_text_is_a_source(tmp_path: Path) -> None:
    try:
        path = write(tmp_path, QUESTION, "caf\udce9.txt")
    except OSError:
        pytest.skip("this file system has names of text only")
    write_puzzles(tmp_path / "set.csv", read_puzzles(path))
    assert read_puzzles(tmp_path / "set.csv")[0].source == "caf\ufffd.txt"


def test_an_open_quote_costs_its_own_line(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + GOOD + f'"{GOOD}' + GOOD * 5)
    with pytest.raises(PuzzleError, match="line 3: A quote opens in this line"):
        read_puzzles(path)
    with pytest.warns(UserWarning, match="skipped 1 bad lines and kept 6. .* line 3: A quote"):
        assert read_puzzles(path, skip_bad=True) == [PUZZLE] * 6


@pytest.mark.parametrize("rating", ["9" * 19, "9" * 5000, "1e999", "nan", "-1", "1_0", "\u0663"])
def test_a_rating_that_is_no_small_number(rating: str, tmp_path: Path) -> None:
    odd = GOOD.replace(",0\n", f",{rating}\n")
    path = write(tmp_path, HEADER + GOOD + odd * 3)
    with pytest.warns(UserWarning, match="3 of the values of `rating` are not whole") as caught:
        found = read_puzzles(path)
    assert len(caught) == 1
    assert found[0] == PUZZLE
    assert found[1] == dataclasses.replace(PUZZLE, rating={"1_0": 10, "\u0663": 3}.get(rating, 0))


def test_ratings_with_a_fraction_keep_their_scale(tmp_path: Path) -> None:
    rows = [GOOD.replace(",0\n", f",{rating}\n") for rating in ("7.6", "12.0", "", "31")]
    path = write(tmp_path, HEADER + "".join(rows))
    with pytest.warns(UserWarning, match=r"puzzles.csv: 2 of the values .* were rounded"):
        assert [puzzle.rating for puzzle in read_puzzles(path)] == [8, 12, 0, 31]


def test_bytes_that_are_no_text_cost_their_own_line(tmp_path: Path) -> None:
    path = write(tmp_path, (HEADER + GOOD).encode() + b"caf\xe9" + GOOD[4:].encode())
    with pytest.raises(PuzzleError, match=r"line 3: .* not UTF-8 .* byte 0xe9 in position 3"):
        read_puzzles(path)
    with pytest.warns(UserWarning, match="skipped 1 bad lines and kept 1"):
        assert read_puzzles(path, skip_bad=True) == [PUZZLE]


@pytest.mark.parametrize("name", ["puzzles.csv", "puzzles.txt"])
def test_question_and_answer_are_columns_enough(name: str, tmp_path: Path) -> None:
    """In any order, beside others, which are not read."""
    source, question, answer, _ = GOOD.strip().split(",")
    path = write(tmp_path, f"answer,difficulty,question\n{answer},hard,{question}\n", name)
    (found,) = read_puzzles(path)
    assert (found.source, found.question, found.answer) == (name, question, answer)
    path = write(tmp_path, f"rating,question,source,answer\n7,{question},{source},{answer}\n", name)
    (found,) = read_puzzles(path)
    assert (found.source, found.rating) == (source, 7)
    path = write(tmp_path, f"question,answer\n{question}\n", name)
    with pytest.raises(ValueError, match=r"line 2: .* the 2 fields question,answer, got 1"):
        read_puzzles(path)


@pytest.mark.parametrize(("header", "lacking"), [
    ("question,rating", "`answer`"), ("answer,source", "`question`"),
    ("a,b", "`question` and `answer`"),
])  # fmt: skip
def test_a_column_that_is_missing_is_named(header: str, lacking: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"{header}\n1.....3..4.....2,1\n")
    with pytest.raises(
        ValueError, match=f"line 1: the header lacks {lacking}: got '{header}'. All"
    ):
        read_puzzles(path)


def test_of_many_bad_lines_the_first_are_shown(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + GOOD + "a,b,,\n" * 3 + GOOD.replace("3142", "3141") * 9000)
    with pytest.warns(UserWarning, match="skipped 9003 bad lines and kept 1") as caught:
        read_puzzles(path, skip_bad=True)
    assert re.findall(r"line \d+", str(caught[0].message)) == ["line 3", "line 4", "line 5"]


def test_questions_are_split_at_line_ends_only() -> None:
    assert SudokuTask().split("1\u20282\n#5\n3\x854\n") == [(1, "1\u20282"), (3, "3\x854")]
    assert MazeTask().split("SG\n  \n") == [(1, "SG\n  \n")]
    assert MazeTask().split("SG  \n\nS  G\n") == [(1, "SG  "), (3, "S  G")]


def test_a_file_of_questions_that_is_no_text_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, b"\xff1.....3..4.....2", "questions.txt")
    assert main(["solve", str(path)]) == 2
    assert f"{path} is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.slow  # a minute: allocations are traced
@pytest.mark.long
@pytest.mark.parametrize(("bad", "reader"), [
    ("a,b,,\n", read_puzzles),
    (GOOD.replace("3142", "3141"), read_puzzles),
    ('"open\n', read_puzzles),
    ("x,S  G,S##G,1\n", read_mazes),
])  # fmt: skip
def test_bad_lines_take_no_memory(bad: str, reader: object, tmp_path: Path) -> None:
    good = GOOD if reader is read_puzzles else "x,S  G,,\n"
    peaks = []
    for count in (20_000, 100_000):
        path = write(tmp_path, HEADER + good + bad * count)
        tracemalloc.start()
        with pytest.warns(UserWarning, match=f"skipped {count} bad lines and kept 1"):
            reader(path, skip_bad=True)  # type: ignore[operator]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 80_000 * 20  # bytes a line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maze.txt", "maze.csv"])
def test_a_large_maze_is_read_where_its_size_is_wanted(name: str, tmp_path: Path) -> None:
    maze = "S" + " " * (1000 * 1000 - 2) + "G"
    path = write(tmp_path, maze if name == "maze.txt" else f"{HEADER}m,{maze},,\n", name)
    assert read_mazes(path)[0].rating == 2 * 999
    with pytest.raises(MazeError, match=r"Expected a maze of 30x30 cells, got 1000x1000"):
        read_mazes(path, 30)


@pytest.mark.parametrize("name", ["maze.txt", "maze.csv"])
def test_a_grid_beyond_all_sizes_is_refused(name: str, tmp_path: Path) -> None:
    maze = "#" * 2**22
    text = f"{maze}\nSG  \n" if name == "maze.txt" else f"{HEADER}m,{maze},,\nmaze.txt,SG  ,,\n"
    path = write(tmp_path, text, name)
    with pytest.raises(MazeError, match=r"shorter than 4,194,304 characters, .* 2048x2048 cells"):
        read_mazes(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [maze.question for maze in read_mazes(path, skip_bad=True)] == ["SG  "]
