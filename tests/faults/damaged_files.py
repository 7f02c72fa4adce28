"""Puzzle files, texts and caches as nobody should write them, and some that are only unusual."""

import gzip
import json
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cases import Fault, must_refuse

from tasks.lm.data import read_texts
from tasks.lm.lambada import read_passages
from tasks.maze.files import read_mazes
from tasks.maze.task import MazeTask
from tasks.puzzles.files import write_puzzles
from tasks.puzzles.puzzle import Puzzle
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.files import read_puzzles
from tasks.sudoku.task import SudokuTask

HEADER = "source,question,answer,rating\n"
SUDOKU = "mine,1.....3..4.....2,1324423124133142,0\n"
MAZE = "mine,S   " + " ##  ##    G,S   o## o## oooG,6\n"
KINDS: dict[str, tuple[Callable[..., Any], str]] = {
    "sudoku": (read_puzzles, SUDOKU), "maze": (read_mazes, MAZE),
}  # fmt: skip


def rated(good: str, rating: str) -> bytes:
    """A file of one row with another rating."""
    return (HEADER + good[: good.rindex(",")] + f",{rating}\n").encode()


# Beside two good rows; the complaint names line 3, and `skip_bad` keeps the good ones.
BAD_ROWS: dict[str, Callable[[str], str]] = {
    "too few fields": lambda good: "a,b\n",
    "too many fields": lambda good: good.replace("\n", ",x\n"),
    "an open quote": lambda good: f'"{good}',
    "an open quote at the end of a field": lambda good: good.replace("mine,", 'mine,"'),
    "text after a closing quote": lambda good: good.replace("mine", '"mine"x'),
    "an empty question": lambda good: "mine,,,\n",
    "a foreign symbol": lambda good: good.replace("mine,", "mine,x"),
    "a null character": lambda good: good.replace("mine,", "mine,\0"),
    "a question cut short": lambda good: "mine," + good.split(",")[1][:-1] + ",,\n",
    "an answer cut short": lambda good: ",".join([*good.split(",")[:2], "12", "0\n"]),
    "a wrong answer": lambda good: good.replace("24423", "24432").replace("oooG", "   G"),
    "a question of 5 MB": lambda good: "mine," + "1" * 5_000_000 + ",,\n",
    "bytes that are no text": lambda good: good.replace("mine", "caf\udce9"),
}  # fmt: skip
SUDOKU_ROWS = {
    "many solutions": "a,1.....3.........,,\n", "no solution": "a,12....3....4....,,\n",
    "a digit twice in a row": "a,11..............,,\n", "another size": "a," + "." * 36 + ",,\n",
    "a digit beyond the board": "a,9...............,,\n",
}  # fmt: skip
MAZE_ROWS = {
    "no start": "a," + " " * 15 + "G,,\n", "two goals": "a,S" + " " * 13 + "GG,,\n",
    "no way": "a,S ##  ######  #G,,\n", "another size": "a,SG  ,,\n",
    "no square": "a,S  G ,,\n",
    "an answer through a wall": MAZE.replace("o## o", "oo# o"),
}  # fmt: skip

# Whole files; those that are only unusual are read.
UNUSUAL: dict[str, Callable[[str], bytes]] = {
    "a byte order mark": lambda good: b"\xef\xbb\xbf" + (HEADER + good).encode(),
    "line ends of Windows": lambda good: (HEADER + good).replace("\n", "\r\n").encode(),
    "line ends of old Macs": lambda good: (HEADER + good).replace("\n", "\r").encode(),
    "no end of the last line": lambda good: (HEADER + good).strip("\n").encode(),
    "empty lines": lambda good: (HEADER + "\n\n" + good + "\n").encode(),
    "line ends in a source": lambda good: (HEADER + good.replace("mine", '"\n\r"')).encode(),
    "all fields in quotes": lambda good: (
        HEADER + '"' + good.strip("\n").replace(",", '","') + '"\n'
    ).encode(),
    "a rating of 5,000 digits": lambda good: rated(good, "9" * 5000),
    "a rating of 1e999": lambda good: rated(good, "1e999"),
    "a rating that is no number": lambda good: rated(good, "nan"),
    "a rating below 0": lambda good: rated(good, "-1"),
    "a rating in other digits": lambda good: rated(good, "\u0663"),
    "a rating that counts something else": lambda good: rated(good, "5"),
}
USELESS: dict[str, bytes] = {
    "nothing": b"",
    "only a header": HEADER.encode(),
    "another header": b"question,answer\n1,2\n",
    "a header with an open quote": b'"source,question,answer,rating\n',
    "UTF-16": (HEADER + SUDOKU).encode("utf-16"),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(500),
    "a compressed file": gzip.compress((HEADER + SUDOKU).encode()),
    "a megabyte of zeros": bytes(10**6),
    "a megabyte of quotes": b'"' * 10**6,
    "a megabyte of open quotes": HEADER.encode() + b'"a\n' * 330_000,
    "a megabyte of commas": HEADER.encode() + b"," * 10**6,
    "JSON": b'{"question": "1"}',
}


def bad_row(kind: str, row: str, folder: Path) -> None:
    """A bad row is named; with `skip_bad` the good ones stay."""
    read, good = KINDS[kind]
    path = folder / "puzzles.csv"
    path.write_bytes((HEADER + good + row + good).encode(errors="surrogateescape"))
    kept = read(path, skip_bad=True)
    assert len(kept) == 2, kept
    must_refuse(lambda: read(path), f"{path}, line 3: ")


def unusual(kind: str, content: Callable[[str], bytes], folder: Path) -> None:
    """A file that is read."""
    read, good = KINDS[kind]
    path = folder / "puzzles.csv"
    path.write_bytes(content(good))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(read(path)) == 1


def useless(kind: str, content: bytes, name: str, folder: Path) -> None:
    """A file that is refused, also if bad lines are skipped."""
    path = folder / name
    path.write_bytes(content)
    must_refuse(lambda: KINDS[kind][0](path), str(path))
    must_refuse(lambda: KINDS[kind][0](path, skip_bad=True), str(path))


def many_bad_lines(kind: str, row: str, folder: Path) -> None:
    """The limit on memory is what is tested."""
    read, good = KINDS[kind]
    path = folder / "puzzles.csv"
    path.write_text(HEADER + good + row * 300_000)
    assert len(read(path, skip_bad=True)) == 1


def source_comes_back(source: str, folder: Path) -> None:
    """Any text is the source of a puzzle."""
    path = folder / "puzzles.csv"
    puzzle = Puzzle(source, *SUDOKU.split(",")[1:3], rating=0)
    write_puzzles(path, [puzzle])
    assert read_puzzles(path) == [puzzle]
    maze = Puzzle(source, "SG  ", "SG  ", 1)
    write_puzzles(path, [maze])
    assert read_mazes(path) == [maze]


def large_maze(name: str, folder: Path) -> None:
    """A maze of 1000 x 1000 is refused by its size where another is expected."""
    path = folder / name
    maze = "S" + " " * 999_998 + "G"
    path.write_text(maze if name.endswith("txt") else f"{HEADER}a,{maze},,\n")
    must_refuse(lambda: read_mazes(path, 30), "30x30", "1000x1000")


def cached(folder: Path) -> tuple[list[Puzzle], list[Puzzle]]:
    """Puzzles of 4x4, made or read from a cache in this folder."""
    options: Any = {"side": 4, "min_clues": 4, "max_clues": 6}
    with patch.dict(os.environ, XDG_CACHE_HOME=str(folder)):
        return SudokuTask().make(SudokuConfig.of(train_puzzles=6, test_puzzles=3, **options))


def damaged_cache(part: str, damage: Callable[[bytes], bytes], folder: Path) -> None:
    """A cache is never believed when it is damaged."""
    made = cached(folder)
    path = next(folder.rglob(f"*{part}"))
    path.write_bytes(damage(path.read_bytes()))
    assert cached(folder) == made
    path.unlink()
    assert cached(folder) == made
    assert path.is_file()


def cache_in_the_way(folder: Path) -> None:
    """The folder of the cache is a file."""
    (folder / "attractor-models").write_text("in the way")
    assert len(cached(folder)[0]) == 6


def question(task: Any, text: str, folder: Path) -> None:
    """Text that a user typed as a puzzle."""
    must_refuse(lambda: task.parse(text))


def passages(content: bytes, expected: list[str] | None, folder: Path) -> None:
    """A file of LAMBADA."""
    path = folder / "lambada.jsonl"
    path.write_bytes(content)
    if expected is None:
        must_refuse(lambda: read_passages(path), str(path))
    assert read_passages(path) == expected


def text_to_train_on(content: bytes | None, folder: Path) -> None:
    """A text that is no text."""
    path = folder / "text.txt"
    if content is not None:
        path.write_bytes(content)
    must_refuse(lambda: read_texts(path, 10**6), str(path))


def a_flip(content: bytes) -> bytes:
    """One bit in the middle."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


LINE = json.dumps({"text": "one two"}).encode() + b"\n"
PASSAGES: dict[str, tuple[bytes, list[str] | None]] = {
    "a byte order mark": (b"\xef\xbb\xbf" + LINE, ["one two"]),
    "U+2028 in a line": ('{"text": "one\u2028two"}\n'.encode(), ["one\u2028two"]),
    "U+0085 in a line": ('{"text": "one\x85two"}\n'.encode(), ["one\x85two"]),
    "bytes that are no text": (LINE + b'{"text": "caf\xe9 b"}', None),
    "half of a surrogate pair": (LINE + b'{"text": "a \\ud800"}', None),
    "deep nesting": (LINE + b"[" * 100_000, None),
    "one word": (LINE + b'{"text": "one"}', None),
    "a number of 5,000 digits": (LINE + b"9" * 5000, None),
    "no object": (LINE + b"[1]", None),
    "nothing": (b"", None),
}
DAMAGE = {"a bit flipped": a_flip, "cut": lambda c: c[:-7], "emptied": lambda c: b"",
          "lines in another order": lambda c: b"\n".join(c.split(b"\n")[::-1])}  # fmt: skip


def faults() -> list[Fault]:
    """All faults of this kind."""
    found: list[Fault] = []
    for kind, (_, good) in KINDS.items():
        rows = {name: make(good) for name, make in BAD_ROWS.items()}
        rows |= SUDOKU_ROWS if kind == "sudoku" else MAZE_ROWS
        found += [(f"{kind} row: {name}", partial(bad_row, kind, rows[name])) for name in rows]
        found += [(f"{kind} file: {n}", partial(unusual, kind, c)) for n, c in UNUSUAL.items()]
        for ending in ("csv", "txt"):
            found += [
                (f"{kind} .{ending}: {name}", partial(useless, kind, content, f"puzzles.{ending}"))
                for name, content in USELESS.items()
            ]
        found.append((f"{kind}: 300,000 bad lines", partial(many_bad_lines, kind, "a,b,,\n")))
    for source in ("\r", "\r\n", '"', ",", "\x85\u2028", "", "\0", "'=1+1"):
        found.append((f"source {source!r}", partial(source_comes_back, source)))
    for name in ("maze.txt", "maze.csv"):
        found.append((f"{name} of 1000x1000", partial(large_maze, name)))
    for part in ("-train.csv", "-test.csv", ".sha256"):
        for name, damage in DAMAGE.items():
            found.append((f"cache: {part} {name}", partial(damaged_cache, part, damage)))
    found.append(("cache: its folder is a file", cache_in_the_way))
    for task in (SudokuTask(), MazeTask()):
        for text in (
            "",
            "\0",
            "9" * 81,
            "S" * 16,
            "\ud800",
            "#" * 10**6,
            "\u0661" * 16,
            "1" * 5000,
        ):
            found.append((f"{task.name} typed: {text[:8]!r}", partial(question, task, text)))
    found += [(f"LAMBADA: {name}", partial(passages, *case)) for name, case in PASSAGES.items()]
    for name, content in {"missing": None, "short": b"a", "no text": b"\xff" * 20_000,
                          "empty": b""}.items():  # fmt: skip
        found.append((f"text to train on: {name}", partial(text_to_train_on, content)))
    return found
