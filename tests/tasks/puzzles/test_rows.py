"""CSV rows: any text comes back, and a bad row costs itself only."""

import csv
import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.puzzles import rows as rows_module
from tasks.puzzles.rows import csv_rows, numbered_lines, write_csv

fields = st.text(st.sampled_from('ab",\n\r \u2028\x85'), max_size=8)
tables = st.lists(st.lists(fields, min_size=2, max_size=4), max_size=6)


def read(text: str) -> list[tuple[int, list[str] | str]]:
    return list(csv_rows(numbered_lines(io.StringIO(text, newline=""))))


@given(table=tables)
def test_what_is_written_comes_back(
    table: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    write_csv(path, table)
    text = path.read_bytes().decode()
    assert [row for _, row in read(text)] == table
    assert list(csv.reader(io.StringIO(text, newline=""))) == table


@given(table=tables, end=st.sampled_from(["\n", "\r\n"]))
def test_what_the_standard_library_writes_is_read(table: list[list[str]], end: str) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(table)
    assert [row for _, row in read(file.getvalue())] == table


@pytest.mark.parametrize(
    ("text", "line", "good"),
    [
        ('a,b\n"c,d\ne,f\ng,h\n', 2, ["a", "e", "g"]),  # open to the end
        ('a,b\n"c,d\ne,f\n"g",h\n', 2, ["a", "e", "g"]),  # what closes it opens another field
        ('a,b\n"c\nx",y\nd,"e\nf,g\n', 4, ["a", "c\nx", "f"]),
        ('"a\nb","c\nd,e\n', 2, ["d"]),  # the row began above
        ('a,b\n"c"d,e\nf,g', 2, ["a", "f"]),
        ('a,b\n"', 2, ["a"]),
        ('a,b\n"""', 2, ["a"]),
    ],
)
def test_an_open_quote_costs_its_own_line(text: str, line: int, good: list[str]) -> None:
    found = read(text)
    assert [row[0] for _, row in found if isinstance(row, list)] == good
    ((number, complaint),) = [(n, row) for n, row in found if isinstance(row, str)]
    assert number == line
    assert complaint.startswith("A quote opens in this line")


def test_many_open_quotes_take_linear_time() -> None:
    """Each line is looked at twice at most, whichever quotes are open."""
    began = time.perf_counter()
    assert len(read('"a,b\n' * 20_000)) == 20_000
    assert len(read('"a,b\n' + "c,d\n" * 20_000)) == 20_001
    assert time.perf_counter() - began < 5.0


def test_a_line_that_is_too_long_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "LONGEST", 4)
    assert read("ab\ncdefghijklmn\nop\n") == [(1, ["ab"]), (2, ["cdefg"]), (3, ["op"])]
    # An open quote ends where it is as long.
    assert [number for number, _ in read('"ab\ncd\nef\ngh\n')] == [1, 2, 3, 4]


def test_a_file_that_is_not_finished_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a[1].csv"
    write_csv(path, [["old"]])

    def rows() -> Iterator[list[str]]:
        yield ["half"]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_csv(path, rows())
    assert path.read_text() == "old\n"
    assert list(path.parent.iterdir()) == [path]
