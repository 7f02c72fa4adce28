"""Maze files: exact round trips with every space, and every complaint."""

import dataclasses
import warnings
from pathlib import Path

import pytest

from tasks.maze.files import read_mazes
from tasks.maze.maze import MazeError
from tasks.puzzles import files as puzzle_files
from tasks.puzzles.files import write_puzzles
from tasks.puzzles.puzzle import Puzzle

HEADER = "source,question,answer,rating\n"
# Round a block: down first is the label, right first as short.
QUESTION = "S   " + " ## " + " ## " + "   G"
ANSWER = "S   " + "o## " + "o## " + "oooG"
OTHER = "Sooo" + " ##o" + " ##o" + "   G"
MAZE = Puzzle("mine", QUESTION, ANSWER, 6)
# Free cells at both ends of the line.
SPACED = Puzzle("mine", "  S " + "### " + "    " + "G#  ", "  So" + "###o" + "oooo" + "G#  ", 7)


def write(folder: Path, text: str, name: str = "mazes.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_round_trip(tmp_path: Path) -> None:
    mazes = [MAZE, SPACED, Puzzle('so "called", \n', SPACED.question, SPACED.answer, 7)]
    path = tmp_path / "deep" / "down" / "set.csv"
    write_puzzles(path, mazes)
    text = path.read_text()
    assert text.startswith(f"{HEADER}mine,{QUESTION},{ANSWER},6\nmine,  S ### ")
    assert read_mazes(path) == mazes
    write_puzzles(path, read_mazes(path))
    assert path.read_text() == text
    assert [file.name for file in path.parent.iterdir()] == ["set.csv"]


def test_line_ends_and_byte_order_mark_are_understood(tmp_path: Path) -> None:
    text = f"{HEADER}mine,{SPACED.question},{SPACED.answer},7\n\n".replace("\n", "\r\n")
    path = tmp_path / "mazes.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_mazes(path) == [SPACED]


def test_empty_answer_and_rating_are_computed(tmp_path: Path) -> None:
    text = f"{HEADER}mine,{QUESTION},,\nmine,{QUESTION},,6\nmine,{QUESTION},{ANSWER},\n"
    assert read_mazes(write(tmp_path, text)) == [MAZE] * 3


@pytest.mark.parametrize("rating", ["5", "6", "110", "1.5", "-1", "hard", "nan", "9" * 30, ""])
def test_a_rating_is_computed_whatever_the_file_says(rating: str, tmp_path: Path) -> None:
    text = f"{HEADER}maze,{QUESTION},{ANSWER},{rating}\n"
    assert read_mazes(write(tmp_path, text)) == [dataclasses.replace(MAZE, source="maze")]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_plain_text_is_solved_and_never_stripped(line_end: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(line_end.join([SPACED.question, "", QUESTION, ""]).encode())
    assert read_mazes(path) == [
        Puzzle("list.txt", maze.question, maze.answer, maze.rating) for maze in (SPACED, MAZE)
    ]


def test_a_line_that_starts_with_a_wall_is_no_comment(tmp_path: Path) -> None:
    neighbours = "##S  G###"
    path = write(tmp_path, f"{neighbours}\n", "list.txt")
    assert read_mazes(path) == [Puzzle("list.txt", neighbours, neighbours, 1)]
    path = write(tmp_path, f"{neighbours}\n# comment\n", "list.txt")
    with pytest.raises(MazeError, match="line 2: Bad question '# comment'"):
        read_mazes(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"mine,{QUESTION},{ANSWER}", "must have the 4 fields source,.*,rating, got 3"),
        (f"mine,{QUESTION[1:]},,", "Bad question '   '?"),
        (f"mine,{QUESTION.rstrip('G')},,", "Bad question 'S   "),
        (f"mine,x{QUESTION[1:]},,", "Bad question 'x   .*'x'"),
        (f"mine,{QUESTION[:-1]} ,,", "Bad question 'S   .*'G'|Bad question 'S   .* G"),
        (f"mine,{QUESTION},{ANSWER} ,6", "Bad answer 'S   o"),
        (f"mine,{ANSWER},,", "Bad question 'S   o"),
        ("mine,S ##  ######  #G,,", "S to|reach|path"),
        ("mine,S  #  ##G,,", "Bad question 'S  #  ##G'"),
        (f"mine,{QUESTION},{QUESTION},6", "it has 0 path cells, a shortest one has 5"),
        (
            f"mine,{QUESTION},{ANSWER[:5]}o{ANSWER[6:]},6",
            "The answer has 'o' at .row 2, column 2., where the question has '#'",
        ),
        (
            f"mine,{QUESTION},{ANSWER[:5]} {ANSWER[6:]},6",
            "The answer has ' ' at .row 2, column 2., where the question has '#'",
        ),
        (f"mine,{QUESTION},{'Soo o##oo##    G'},6", "its cells do not join S to G"),
    ],
)
def test_bad_rows_are_named_or_skipped(row: str, message: str, tmp_path: Path) -> None:
    good = f"mine,{QUESTION},{ANSWER},6\n"
    path = write(tmp_path, f"{HEADER}{good}{row}\n{good}")
    with pytest.raises(MazeError, match=message) as caught:
        read_mazes(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert str(caught.value).endswith("`--skip-bad` skips such lines.")
    with pytest.warns(UserWarning, match="skipped 1 bad lines and kept 2. .* line 3: ") as warned:
        assert read_mazes(path, skip_bad=True) == [MAZE, MAZE]
    assert [Path(warning.filename).name for warning in warned] == ["test_files.py"]


def test_other_shortest_paths_are_accepted_and_counted_once(tmp_path: Path) -> None:
    good, other = f"mine,{QUESTION},{ANSWER},6\n", f"mine,{QUESTION},{OTHER},6\n"
    path = write(tmp_path, f"{HEADER}{good}{other}{good}{other}")
    with pytest.warns(UserWarning, match="2 of 4 answers are not the shortest path") as caught:
        mazes = read_mazes(path)
    assert [maze.answer for maze in mazes] == [ANSWER, OTHER] * 2
    assert [Path(warning.filename).name for warning in caught] == ["test_files.py"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_mazes(write(tmp_path, f"{HEADER}{good}{good}"))


def test_wrong_answers_do_not_count_as_other_paths(tmp_path: Path) -> None:
    rows = f"mine,{QUESTION},{QUESTION},6\nmine,{QUESTION},{OTHER},6\n"
    with pytest.warns(UserWarning, match="skipped|answers") as caught:
        assert len(read_mazes(write(tmp_path, HEADER + rows), skip_bad=True)) == 1
    skipped, others = (str(warning.message) for warning in caught)
    assert "skipped 1 bad lines and kept 1" in skipped
    assert "1 of 1 answers are not" in others


def test_a_sudoku_file_is_refused_as_such(tmp_path: Path) -> None:
    row = "mine,1.....3..4.....2,1324423124133142,0\n"
    path = write(tmp_path, HEADER + row)
    with pytest.raises(MazeError, match=r"line 2: Bad question '1\..*looks like another task's"):
        read_mazes(path)
    with (
        pytest.warns(UserWarning, match="skipped 1 .* looks like another task's"),
        pytest.raises(MazeError, match="holds no puzzle"),
    ):
        read_mazes(path, skip_bad=True)


def test_an_expected_side_is_enforced(tmp_path: Path) -> None:
    text = f"{HEADER}mine,{QUESTION},{ANSWER},6\n"
    assert read_mazes(write(tmp_path, text), 4) == [MAZE]
    with pytest.raises(MazeError, match="line 2: Bad question"):
        read_mazes(write(tmp_path, text), 30)


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_the_first_maze_sets_the_side(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puzzle_files, "_CHUNK", chunk)
    path = write(tmp_path, f"{QUESTION}\n{QUESTION}\n##S  G###\n{QUESTION}\n", "list.txt")
    with pytest.raises(MazeError, match="line 3: Bad question '##S  G###'"):
        read_mazes(path)
    with pytest.warns(UserWarning, match="skipped 1 bad lines and kept 3"):
        assert len(read_mazes(path, skip_bad=True)) == 3


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "mazes.txt", "holds no puzzle. Allowed: a CSV with the columns `question`"),
        (HEADER, "mazes.csv", "holds no puzzle"),
        (
            QUESTION,
            "mazes.csv",
            f"line 1: the header lacks `question` and `answer`: got '{QUESTION}'",
        ),
    ],
)
def test_files_without_mazes(text: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(MazeError, match=message):
        read_mazes(write(tmp_path, text, name))


def test_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(MazeError, match=r"cannot be read .*utf-8"):
        read_mazes(tmp_path / "picture.csv")


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    write_puzzles(path, [MAZE])

    def interrupted():
        yield MAZE
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_puzzles(path, interrupted())
    assert read_mazes(path) == [MAZE]
    assert list(tmp_path.iterdir()) == [path]


def test_real_file(shared_data: Path, tmp_path: Path) -> None:
    """Every published answer is our label, and every rating the number of its steps."""
    path = shared_data / "maze_30x30_hard_train.csv"
    mazes = read_mazes(path, 30)
    assert len(mazes) == 1000
    write_puzzles(tmp_path / "copy.csv", mazes)
    published = path.read_bytes().replace(b"\r\n", b"\n")
    assert (tmp_path / "copy.csv").read_bytes() == published


def test_real_sudoku_file(shared_data: Path) -> None:
    with pytest.raises(MazeError, match="looks like another task's file"):
        read_mazes(shared_data / "sudoku_extreme_like_dev_1k.csv")
