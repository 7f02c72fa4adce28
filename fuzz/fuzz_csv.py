"""Puzzle files, CSV and plain text, of Sudokus and mazes; see `entry`.

A file is read, or refused by a `ValueError` that names it. What is read comes back from a file that
we wrote. Where the standard library takes a text for CSV without complaints, we read the same rows.
"""

import csv
import io
import warnings

from entry import folder, fuzz, instrumented

with instrumented("tasks.puzzles", "tasks.sudoku", "tasks.maze"):
    from tasks.maze.files import read_mazes
    from tasks.puzzles.files import write_puzzles
    from tasks.puzzles.rows import csv_rows, numbered_lines
    from tasks.sudoku.files import read_puzzles

HEADER = b"source,question,answer,rating\n"
READERS = [read_puzzles, read_mazes]
SEEDS = [
    b"\0" + HEADER + b'"a ""b""\r\n",1.....3..4.....2,1324423124133142,0\nb,1.....3..4.....2,,\n',
    b"\1" + HEADER + b"a,S  G,,\nb,S ##  ##  ##   G,SoooX,6\n",
    b"\2# text\n1.....3..4.....2\n\n1.....3..4.....2\r\n",
    b"\3S  G\n\nS ##  ##  ##   G\n",
    b"\0\xef\xbb\xbf" + HEADER + b'a,"1.....3..4.....2,1324423124133142,0\n\xff,,,\n',
]
warnings.simplefilter("ignore")


def one_input(data: bytes) -> None:
    """The first byte chooses the kind of file, the others are its content."""
    if not data:
        return
    compare(data[1:].decode("latin-1"))
    read = READERS[data[0] & 1]
    path = folder("csv") / ("input.txt" if data[0] & 2 else "input.csv")
    path.write_bytes(data[1:])
    try:
        puzzles = read(path, skip_bad=bool(data[0] & 4))
    except ValueError as error:
        if str(path) not in str(error):
            raise
        return
    write_puzzles(folder("csv") / "copy.csv", puzzles)
    if read(folder("csv") / "copy.csv") != puzzles:
        raise AssertionError(f"{puzzles} do not come back")


def compare(text: str) -> None:
    """Compare our rows with those of the standard library, if it has no complaint."""
    try:
        expected = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error:
        return
    found = [row for _, row in csv_rows(numbered_lines(io.StringIO(text, newline="")))]
    if found != expected:
        raise AssertionError(f"{text!r}: {found} instead of {expected}")


if __name__ == "__main__":
    fuzz(one_input, "csv", SEEDS)
