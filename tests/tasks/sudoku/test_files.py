"""Puzzle files: exact round trips, every complaint, and the cache of generated sets."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.puzzles.cache import default_directory
from tasks.puzzles.files import write_puzzles
from tasks.puzzles.puzzle import Puzzle
from tasks.sudoku.board import Board, PuzzleError
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.files import read_puzzles
from tasks.sudoku.generate import generate, train_and_test
from tasks.sudoku.task import SudokuTask

HEADER = "source,question,answer,rating\n"
QUESTION = "1.....3..4.....2"
ANSWER = "1324423124133142"
AMBIGUOUS = "1.....3........."
PUZZLE = Puzzle("mine", QUESTION, ANSWER, 0)


def write(folder: Path, text: str, name: str = "puzzles.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("side", [4, 6, 9, 12, 16])
def test_round_trip(side: int, tmp_path: Path) -> None:
    half = None if side <= 9 else (side**2 // 2, side**2)
    puzzles = generate(10, Board.of(side), half, workers=1)
    path = tmp_path / "deep" / "down" / "set.csv"
    write_puzzles(path, puzzles)
    text = path.read_text()
    assert read_puzzles(path) == puzzles
    write_puzzles(path, read_puzzles(path))
    assert path.read_text() == text
    assert [file.name for file in path.parent.iterdir()] == ["set.csv"]


@settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    source=st.text(
        st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n"), max_size=9
    ),
    rating=st.integers(0, 10**9),
)
def test_any_source_and_rating_come_back(source: str, rating: int, tmp_path: Path) -> None:
    puzzles = [Puzzle(source, QUESTION, ANSWER, rating), PUZZLE]
    write_puzzles(tmp_path / "set.csv", puzzles)
    assert read_puzzles(tmp_path / "set.csv") == puzzles


def test_zeros_line_ends_and_byte_order_mark_are_understood(tmp_path: Path) -> None:
    text = f"{HEADER}mine,{QUESTION.replace('.', '0')},{ANSWER},0\n\n".replace("\n", "\r\n")
    path = tmp_path / "puzzles.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_puzzles(path) == [PUZZLE]


def test_empty_answer_and_rating_are_computed(tmp_path: Path) -> None:
    text = f"{HEADER}mine,{QUESTION},,\nmine,{QUESTION},,7\nmine,{QUESTION},{ANSWER},\n"
    first, second, third = read_puzzles(write(tmp_path, text))
    assert first == third == PUZZLE
    assert second == Puzzle("mine", QUESTION, ANSWER, 7)


def test_plain_text_is_solved(tmp_path: Path) -> None:
    path = write(tmp_path, f"# two puzzles\n{QUESTION}\n\n  {QUESTION} \n", "list.txt")
    assert read_puzzles(path) == [Puzzle("list.txt", QUESTION, ANSWER, 0)] * 2


def test_a_csv_needs_no_particular_ending(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEADER}mine,{QUESTION},{ANSWER},0\n", "puzzles.data")
    assert read_puzzles(path) == [PUZZLE]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"mine,{QUESTION},{ANSWER}", "must have the 4 fields source,.*,rating, got 3"),
        (f"mine,{QUESTION[1:]},{ANSWER},0", "Bad question '.*'. A grid must have 16 .* got 15"),
        (
            f"mine,x{QUESTION[1:]},{ANSWER},0",
            "Bad question '.*'. Character 'x' at .row 1, ",
        ),
        (f"mine,{QUESTION},{ANSWER}1,0", "Bad answer '.*'. A grid must have 16 .*, got 17"),
        (f"mine,{QUESTION},.{ANSWER[1:]},0", "answer leaves .row 1, column 1. blank"),
        (
            f"mine,{QUESTION},4{ANSWER[1:]},0",
            "has 4 at .row 1, column 1., where the question has 1",
        ),
        (f"mine,{QUESTION},{ANSWER[:2]}42{ANSWER[4:]},0", "Digit 4 stands twice in one column"),
        (f"mine,11{QUESTION[2:]},,0", "Digit 1 stands twice in one row"),
        (f"mine,{AMBIGUOUS},,0", "has more than one solution"),
        ("mine,12....3....4....,,0", "has no solution"),
        (
            f"mine,{'.' * 36},,0",
            "must have 16 .4x4. cells, got 36: this puzzle is 6x6, but those above are 4x4",
        ),
    ],
)
def test_bad_rows_are_named_or_skipped(row: str, message: str, tmp_path: Path) -> None:
    good = f"mine,{QUESTION},{ANSWER},0\n"
    path = write(tmp_path, f"{HEADER}{good}{row}\n{good}")
    with pytest.raises(PuzzleError, match=message) as caught:
        read_puzzles(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert str(caught.value).endswith("`--skip-bad` skips such lines.")
    with pytest.warns(UserWarning, match="skipped 1 bad lines and kept 2. .* line 3: "):
        assert read_puzzles(path, skip_bad=True) == [PUZZLE, PUZZLE]


def test_the_first_bad_line_is_named(tmp_path: Path) -> None:
    good = f"mine,{QUESTION},{ANSWER},0\n"
    wrong_answer = f"mine,{QUESTION},4{ANSWER[1:]},0\n"
    path = write(tmp_path, f'{HEADER}"a\nb",{QUESTION},{ANSWER},0\n{wrong_answer}too,short\n{good}')
    with pytest.raises(PuzzleError, match="line 4: The answer has 4"):
        read_puzzles(path)


def test_bad_plain_lines(tmp_path: Path) -> None:
    path = write(tmp_path, f"{QUESTION}\n{AMBIGUOUS}\nhello\n", "list.txt")
    with pytest.raises(PuzzleError, match="line 2: The puzzle has more than one solution"):
        read_puzzles(path)
    with pytest.warns(UserWarning, match="skipped 2 bad lines and kept 1"):
        assert len(read_puzzles(path, skip_bad=True)) == 1


def test_an_expected_board_is_enforced(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEADER}mine,{QUESTION},{ANSWER},0\n")
    with pytest.raises(PuzzleError, match=r"must have 81 \(9x9\) cells, got 16"):
        read_puzzles(path, Board.of(9))


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "puzzles.txt", "holds no puzzle. Allowed: a CSV with the columns `question`"),
        (HEADER, "puzzles.csv", "holds no puzzle"),
        (
            QUESTION,
            "puzzles.csv",
            f"line 1: the header lacks `question` and `answer`: got '{QUESTION}'",
        ),
    ],
)
def test_files_without_puzzles(text: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PuzzleError, match=message):
        read_puzzles(write(tmp_path, text, name))


def test_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(PuzzleError, match=r"cannot be read .*utf-8"):
        read_puzzles(tmp_path / "picture.csv")


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    write_puzzles(path, [PUZZLE])

    def interrupted():
        yield PUZZLE
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_puzzles(path, interrupted())
    assert read_puzzles(path) == [PUZZLE]
    assert list(tmp_path.iterdir()) == [path]


Sets = tuple[list[Puzzle], list[Puzzle]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, which is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "attractor-models" / "sudoku"


def cached(train: int, test: int, **options: Any) -> Sets:
    """Puzzles of 4x4, made or read."""
    wanted = {"side": 4, "min_clues": 4, "max_clues": 6, "minimal": True, **options}
    return SudokuTask().make(SudokuConfig.of(train_puzzles=train, test_puzzles=test, **wanted))


def made_anew(train: int, test: int, seed: int = 0) -> Sets:
    return train_and_test(train, test, Board.of(4), (4, 6), minimal=True, seed=seed)


def test_cache_is_used_the_second_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = cached(6, 3, seed=1)
    assert capsys.readouterr().out == "Making 9 puzzles, which are then kept ...\n"
    assert first == made_anew(6, 3, seed=1)
    assert len(list(folder.iterdir())) == 3

    def fail(*args: object, **options: object) -> None:
        raise AssertionError("made anew")

    monkeypatch.setattr(SudokuTask, "generate", fail)
    assert cached(6, 3, seed=1, copies=3, extra_clues=2, relatives=1) == first
    assert not capsys.readouterr().out
    for other in ({"seed": 2}, {"seed": 1, "max_clues": 5}, {"seed": 1, "minimal": False}):
        with pytest.raises(AssertionError, match="made anew"):
            cached(6, 3, **other)
    monkeypatch.setattr(SudokuTask, "version", -1)
    with pytest.raises(AssertionError, match="made anew"):
        cached(6, 3, seed=1)


@pytest.mark.usefixtures("folder")
def test_cache_of_an_empty_set() -> None:
    assert cached(2, 0) == cached(2, 0)


@pytest.mark.parametrize("damage", ["", "source,question\n", None])
def test_damaged_cache_is_made_anew(damage: str | None, folder: Path) -> None:
    sets = cached(4, 2)
    path = next(folder.glob("*-test.csv"))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) if damage is None else damage)
    with pytest.warns(UserWarning, match="is damaged: making its puzzles anew"):
        assert cached(4, 2) == sets
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cached(4, 2) == sets


def test_a_cache_that_looks_whole_but_is_not_is_made_anew(folder: Path) -> None:
    """Another rating reads as well as the right one; only the checksum tells them apart."""
    sets = cached(4, 2)
    path = next(folder.glob("*-train.csv"))
    lines = path.read_text().splitlines(keepends=True)
    for damaged in (lines[:1] + lines[1:][::-1], [line.replace(",0\n", ",1\n") for line in lines]):
        assert damaged != lines
        path.write_text("".join(damaged))
        with pytest.warns(UserWarning, match=r"-train\.csv is damaged: making its puzzles anew"):
            assert cached(4, 2) == sets
        assert path.read_text() == "".join(lines)
    next(folder.glob("*.sha256")).write_bytes(b"\xff")
    with pytest.warns(UserWarning, match="is damaged: making its puzzles anew"):
        assert cached(4, 2) == sets


def test_cache_that_was_not_finished_is_made_anew(folder: Path) -> None:
    sets = cached(4, 2)
    next(folder.glob("*.sha256")).unlink()
    assert cached(4, 2) == sets
    assert sorted(path.suffix for path in folder.iterdir()) == [".csv", ".csv", ".sha256"]


def test_cache_that_cannot_be_written_is_done_without(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be written"):
        sets = cached(4, 2)
    assert sets == made_anew(4, 2)


def test_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory("sudoku") == tmp_path / "attractor-models" / "sudoku"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_directory("sudoku") == Path.home() / ".cache" / "attractor-models" / "sudoku"


@pytest.mark.parametrize("name", ["sudoku_extreme_like_train_1k", "sudoku_extreme_like_dev_1k"])
def test_real_files(name: str, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / f"{name}.csv"
    puzzles = read_puzzles(path)
    assert len(puzzles) == 1000
    write_puzzles(tmp_path / "copy.csv", puzzles)
    assert (tmp_path / "copy.csv").read_bytes() == path.read_bytes()


def test_real_puzzles_with_many_solutions(shared_data: Path) -> None:
    path = shared_data / "sudoku_many_solutions.txt"
    with pytest.warns(UserWarning, match="skipped 50 bad lines"), pytest.raises(PuzzleError):
        read_puzzles(path, skip_bad=True)
