"""Keep generated puzzle sets on disk, so that the next run starts at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.puzzles import cache as set_cache
from tasks.puzzles.cache import SetCache
from tasks.sudoku.board import Board, Puzzle
from tasks.sudoku.files import read_puzzles, write_puzzles
from tasks.sudoku.generate import GENERATOR_VERSION, train_and_test
from tasks.sudoku.relatives import RELATIVES_VERSION, harder, relatives


def default_directory() -> Path:
    """`attractor-models/sudoku` in the user's cache folder."""
    return set_cache.default_directory("sudoku")


def cached(
    train_count: int,
    test_count: int,
    board: Board,
    clues: tuple[int, int] | None = None,
    *,
    minimal: bool = False,
    guesses: int = 0,
    seed: int = 0,
    workers: int | None = None,
    directory: str | Path | None = None,
) -> tuple[list[Puzzle], list[Puzzle]]:
    """As `train_and_test`, but read from disk if the same sets were made before.

    The two sets are CSV files named by a hash of all arguments that matter and of the
    generator's version. A damaged file is made anew, and where the folder cannot be written the
    sets are made every time; both with a warning.

    Args:
        train_count: See `train_and_test`, like all that follow.
        test_count: See `train_and_test`.
        board: See `train_and_test`.
        clues: See `train_and_test`.
        minimal: See `train_and_test`.
        guesses: Fewest guesses of our solver; see `relatives.harder`.
        seed: See `train_and_test`.
        workers: See `train_and_test`. Not part of the hash, as it changes no puzzle.
        directory: The folder of the cache, by default `default_directory()`.

    Returns:
        Training puzzles and test puzzles.

    Raises:
        ValueError: See `train_and_test` and `relatives.harder`.
    """
    wanted = {
        "version": GENERATOR_VERSION,
        "counts": [train_count, test_count],
        "side": board.side,
        "clues": clues,
        "minimal": minimal or clues is None,
        "seed": seed,
    }
    if guesses:
        wanted |= {"guesses": guesses, "relatives_version": RELATIVES_VERSION}

    def make() -> tuple[list[Puzzle], list[Puzzle]]:
        train, test = train_and_test(
            train_count, test_count, board, clues, minimal=minimal, seed=seed, workers=workers
        )
        if guesses:
            train, test = (
                harder(part, guesses, seed=seed, workers=workers) for part in (train, test)
            )
        return train, test

    return _cache(board, directory).get(board.name, wanted, (train_count, test_count), make)


def cached_relatives(
    puzzles: Sequence[Puzzle],
    count: int,
    board: Board,
    *,
    seed: int = 0,
    workers: int | None = None,
    directory: str | Path | None = None,
) -> list[Puzzle]:
    """As `relatives`, but read from disk if the same ones were made before; see `cached`.

    Args:
        puzzles: See `relatives`.
        count: See `relatives`.
        board: That of the puzzles.
        seed: See `relatives`.
        workers: See `relatives`.
        directory: See `cached`.
    """
    wanted = {
        "version": RELATIVES_VERSION,
        "puzzles": [puzzle.question for puzzle in puzzles],
        "count": count,
        "seed": seed,
    }
    made, _ = _cache(board, directory).get(
        f"{board.name}-relatives",
        wanted,
        (count * len(puzzles), 0),
        lambda: (relatives(puzzles, count, seed=seed, workers=workers), []),
    )
    return made


def _cache(board: Board, directory: str | Path | None) -> SetCache[Puzzle]:
    folder = Path(directory) if directory is not None else default_directory()
    return SetCache(folder, lambda path: read_puzzles(path, board), write_puzzles)
