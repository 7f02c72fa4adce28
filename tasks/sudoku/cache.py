"""Keep generated puzzle sets on disk, so that the next run starts at once."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path

from tasks.sudoku.board import Board, Puzzle, PuzzleError
from tasks.sudoku.files import read_puzzles, write_puzzles
from tasks.sudoku.generate import GENERATOR_VERSION, train_and_test


def default_directory() -> Path:
    """`attractor-models/sudoku` in the user's cache folder, which XDG_CACHE_HOME may name."""
    home = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification says to ignore a path that is not absolute.
    base = Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache"
    return base / "attractor-models" / "sudoku"


def cached(
    train_count: int,
    test_count: int,
    board: Board,
    clues: tuple[int, int] | None = None,
    *,
    minimal: bool = False,
    seed: int = 0,
    workers: int | None = None,
    directory: str | Path | None = None,
) -> tuple[list[Puzzle], list[Puzzle]]:
    """`train_and_test`, but read from disk where the same sets were made before.

    The two sets are CSV files named by a hash of all arguments that matter and of the
    generator's version. A damaged file is made anew, and where the folder cannot be written the
    sets are made every time; both with a warning.

    Args:
        train_count: See `train_and_test`, like all that follow.
        test_count: See `train_and_test`.
        board: See `train_and_test`.
        clues: See `train_and_test`.
        minimal: See `train_and_test`.
        seed: See `train_and_test`.
        workers: See `train_and_test`. Not part of the hash, as it changes no puzzle.
        directory: The folder of the cache, by default `default_directory()`.

    Returns:
        Training puzzles and test puzzles.

    Raises:
        ValueError: See `train_and_test`.
    """
    wanted = {
        "version": GENERATOR_VERSION,
        "counts": [train_count, test_count],
        "side": board.side,
        "clues": clues,
        "minimal": minimal or clues is None,
        "seed": seed,
    }
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(directory) if directory is not None else default_directory()
    paths = [folder / f"{board.name}-{key}-{part}.csv" for part in ("train", "test")]
    stored = _load(paths, [train_count, test_count], board)
    if stored is not None:
        return stored[0], stored[1]
    sets = train_and_test(
        train_count, test_count, board, clues, minimal=minimal, seed=seed, workers=workers
    )
    _store(paths, sets)
    return sets


def _load(paths: list[Path], counts: list[int], board: Board) -> list[list[Puzzle]] | None:
    """The stored sets, or None where they are missing or damaged."""
    sets = []
    for path, count in zip(paths, counts, strict=True):
        try:
            puzzles = read_puzzles(path, board) if count else []
        except OSError:  # missing, or unreadable: if that matters, `_store` will say so
            return None
        except PuzzleError:
            puzzles = None
        if puzzles is None or len(puzzles) != count:
            warnings.warn(f"{path} is damaged: making its puzzles anew.", stacklevel=3)
            return None
        sets.append(puzzles)
    return sets


def _store(paths: list[Path], sets: tuple[list[Puzzle], list[Puzzle]]) -> None:
    try:
        for path, puzzles in zip(paths, sets, strict=True):
            write_puzzles(path, puzzles)
    except OSError as error:
        warnings.warn(
            f"The puzzles will be made anew next time: {paths[0].parent} cannot be written "
            f"({error}). Set XDG_CACHE_HOME to a folder that can.",
            stacklevel=3,
        )
