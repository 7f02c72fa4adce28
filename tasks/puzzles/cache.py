"""Keep generated puzzle sets on disk, so that the next run starts at once."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.puzzles.files import write_puzzles
from tasks.puzzles.puzzle import Puzzle
from tasks.puzzles.rows import replacing


def default_directory(task: str) -> Path:
    """`attractor-models/<task>` in the user's cache folder, which XDG_CACHE_HOME may name."""
    home = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification says to ignore a path that is not absolute.
    base = Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache"
    return base / "attractor-models" / task


@dataclass(frozen=True)
class SetCache:
    """A training and a test set as two CSV files, named by a hash of how they were made.

    A third file has the checksums of both, in the form of `sha256sum`; it is written last, so
    that sets without it were not finished. A damaged file is made anew, and where the folder
    cannot be written the sets are made every time; both with a warning.

    Args:
        folder: Where the files are.
        size: Of the puzzles; begins the files' names.
        read: Reads a file, with a ValueError if it is damaged.
    """

    folder: Path
    size: str
    read: Callable[[Path], list[Puzzle]]

    def get(
        self,
        label: str,
        wanted: Mapping[str, Any],
        counts: Sequence[int],
        make: Callable[[], tuple[list[Puzzle], list[Puzzle]]],
    ) -> tuple[list[Puzzle], list[Puzzle]]:
        """Read the sets from disk if the same ones were made before, or make and store them.

        Args:
            label: Follows in the files' names.
            wanted: Everything that decides the content, as JSON values.
            counts: How many puzzles each set has.
            make: Makes them.
        """
        key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
        name = f"{self.size}-{label}-{key}"
        paths = [self.folder / f"{name}-{part}.csv" for part in ("train", "test")]
        sums = self.folder / f"{name}.sha256"
        if (stored := self._load(paths, sums, counts)) is not None:
            return stored[0], stored[1]
        sets = make()
        self._store(paths, sums, sets)
        return sets

    def _load(
        self, paths: Sequence[Path], sums: Path, counts: Sequence[int]
    ) -> list[list[Puzzle]] | None:
        """The stored sets, or None where they are missing or damaged."""
        sets = []
        try:
            known = sums.read_bytes().splitlines()
            for path, count in zip(paths, counts, strict=True):
                puzzles = self._read(path, known) if count else []
                if puzzles is None or len(puzzles) != count:
                    warnings.warn(f"{path} is damaged: making its puzzles anew.", stacklevel=4)
                    return None
                sets.append(puzzles)
        except OSError:  # missing, or unreadable: if that matters, `_store` will say so
            return None
        return sets

    def _read(self, path: Path, known: Sequence[bytes]) -> list[Puzzle] | None:
        """The puzzles of a file, or None where it is damaged."""
        if _sum(path).encode() not in known:
            return None
        try:
            return self.read(path)
        except ValueError:
            return None

    def _store(
        self, paths: Sequence[Path], sums: Path, sets: tuple[list[Puzzle], list[Puzzle]]
    ) -> None:
        try:
            for path, puzzles in zip(paths, sets, strict=True):
                write_puzzles(path, puzzles)
            with replacing(sums) as file:
                file.writelines(_sum(path) + "\n" for path in paths)
        except OSError as error:
            warnings.warn(
                f"The puzzles will be made anew next time: {self.folder} cannot be written "
                f"({error}). Set XDG_CACHE_HOME to a folder that can.",
                stacklevel=4,
            )


def _sum(path: Path) -> str:
    """The checksum and the name of a file, as `sha256sum` writes them."""
    with path.open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}"
