"""The interface between one kind of grid puzzle and the commands that all kinds share.

A method imports what only training, files or pictures need when it is called.
"""

from __future__ import annotations

import math
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from tasks.puzzles.config import GridConfig, GridData
from tasks.puzzles.puzzle import Puzzle, place_in_text
from tasks.training.options import flag

if TYPE_CHECKING:
    from tasks.puzzles.cache import SetCache
    from tasks.puzzles.pictures import GridPicture

# How the name of a file ends or a path begins, and no puzzle.
FILE_NAME = re.compile(r"\.[A-Za-z]\w{1,5}$|[/\\]")
Sampler = Callable[[Tensor, torch.Generator, float], tuple[Tensor, Tensor]]
"""(rows of the training set, generator, share of the budget that is used) -> symbols and classes of
random symmetric copies."""
Frames = Sequence[tuple[int, float, Tensor]]
"""(step, relative residual, probabilities of shape (cells, symbols)) of a solve, in order."""

C = TypeVar("C", bound=GridConfig)


class GridTask(ABC, Generic[C]):
    """One kind of grid puzzle: its data, rules and pictures.

    The methods that have a body here suit a puzzle whose questions and answers are written with
    one character a cell, white space aside.

    Attributes:
        name: Of the run folders and the cache, and in checkpoints.
        config_type: The task's configuration.
        presets: Configurations by name.
        default_preset: The one that a command takes if none is named.
        noun: What one puzzle is called in messages.
        bands: Upper ends of the bands of rating that accuracy is split by.
        verdict: What an answer that keeps the rules is called.
        published: Where files of such puzzles can be had, as a sentence after a space.
        legend: What `show` has besides the answer, in a sentence.
        all_different: Whether a symbol may stand only once in each unit of the board.
        symbols: The character of each symbol in order.
        first_symbol: The symbol that class 0 stands for; the others follow. If it is 1, symbol 0
            is a blank that any class may fill.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[GridConfig]]
    presets: ClassVar[dict[str, Any]]
    default_preset: ClassVar[str]
    noun: ClassVar[str] = "puzzle"
    bands: ClassVar[tuple[int, ...]]
    verdict: ClassVar[str] = "a valid solution"
    published: ClassVar[str] = ""
    legend: ClassVar[str] = ""
    all_different: ClassVar[bool] = False
    symbols: ClassVar[str]
    first_symbol: ClassVar[int] = 0

    @property
    def version(self) -> Any:
        """JSON value, other with any change by which `generate` returns other puzzles."""
        return 1

    @abstractmethod
    def generate(self, config: C) -> tuple[list[Puzzle], list[Puzzle]]:
        """Make training and test puzzles; see `tasks.puzzles.workers.train_and_test`."""

    @abstractmethod
    def complete(self, source: str, question: Sequence[int]) -> Puzzle:
        """Find the answer to a question and its rating.

        Raises:
            ValueError: There is none, or more than one where there must be one.
        """

    @abstractmethod
    def identity(self, puzzle: Puzzle, config: C) -> Any:
        """A value that is equal for two puzzles if one is a symmetric copy of the other."""

    @abstractmethod
    def sampler(self, puzzles: Sequence[Puzzle], config: C) -> Sampler:
        """The source of training batches of these puzzles."""

    def make(self, config: C) -> tuple[list[Puzzle], list[Puzzle]]:
        """What `generate` makes, or made before."""
        data = config.data
        counts = (data.train_puzzles, data.test_puzzles)
        own = [n for n in data.names() if n not in (*GridData.names(), *data.training)]
        wanted = {"version": self.version, "counts": counts, "seed": config.train.seed}
        wanted |= {name: getattr(data, name) for name in own}

        def generate() -> tuple[list[Puzzle], list[Puzzle]]:
            print(f"Making {sum(counts):,} {self.noun}s, which are then kept ...", flush=True)
            return self.generate(config)

        return self.cache(config).get("made", wanted, counts, generate)

    def cache(self, config: C) -> SetCache:
        """The sets that were made before."""
        from tasks.puzzles.cache import SetCache, default_directory

        side = config.spec().side
        folder = default_directory(self.name)
        return SetCache(folder, f"{side}x{side}", lambda path: self.read(path, config))

    def read(self, path: Path, config: C, skip_bad: bool = False) -> list[Puzzle]:
        """Read a file of puzzles of the size that `config` names."""
        from tasks.puzzles.files import TaskFormat

        return TaskFormat(self, config).read(path, skip_bad=skip_bad)

    def side_of(self, path: Path) -> int | None:
        """Cells of a row of the puzzles in a file, which have one size; None if it is not known.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is no file of puzzles.
        """
        return None

    def enlarged(self, puzzles: list[Puzzle], config: C) -> list[Puzzle]:
        """The training puzzles, together with others that are derived from them."""
        return puzzles

    def encode(self, puzzles: Sequence[Puzzle], config: C) -> tuple[Tensor, Tensor]:
        """Symbols of the questions and classes of the answers, shape (puzzles, cells)."""
        questions, answers = to_tensors(puzzles, config.spec().side, self.symbols)
        return questions, answers - self.first_symbol

    @abstractmethod
    def is_valid(self, x: Tensor, classes: Tensor, config: C) -> Tensor:
        """Whether answers keep the rules and fit their questions, shape (puzzles,)."""

    def assume(self, x: Tensor, cells: Tensor, classes: Tensor) -> Tensor:
        """The questions with one more cell filled in, each; see `tasks.puzzles.search`."""
        if self.first_symbol != 1:
            raise ValueError(
                f"`--attempts` guesses cells of a question, but a {self.noun} cannot show any of "
                "its answer. Use `--breadth`."
            )
        return x.scatter(1, cells[:, None], classes[:, None] + 1)

    def parse(self, text: str) -> Puzzle:
        """Parse a question that a user typed, and find its exact answer.

        Raises:
            ValueError: The text is no question, or it has no answer.
        """
        return self.complete("typed", self.question(text))

    def question(self, text: str, config: C | None = None) -> list[int]:
        """The symbols of a question of the size that `config` names; by default of any size.

        Unlike `parse` it searches for no answer, so that the cost is small for any text.

        Raises:
            ValueError: The text is no question of this size.
        """
        cells = "".join(text.split())
        for cell, symbol in enumerate(cells):
            if symbol not in self.symbols:
                raise ValueError(
                    f"A {self.noun} may hold the characters {' '.join(self.symbols)}, one a cell: "
                    f"got {symbol!r} at {place_in_text(cell, len(cells))}."
                )
        side = math.isqrt(len(cells)) if config is None else config.spec().side
        if not cells or len(cells) != side**2:
            size = "the cells of a square" if config is None else f"{side**2} cells"
            raise ValueError(f"A {self.noun} must have {size}, got {len(cells)}.")
        return [self.symbols.index(cell) for cell in cells]

    @abstractmethod
    def example(self, config: C) -> str:
        """An easy question of the size that `config` names, always the same, in one line."""

    def examples(self, config: C) -> dict[str, str]:
        """Questions to try, by what they are called, the easiest first; each in one line."""
        return {"easy": self.example(config)}

    def line(self, symbols: Sequence[int]) -> str:
        """A question or an answer in one line, one character a cell."""
        return "".join(map(self.symbols.__getitem__, symbols))

    def split(self, text: str) -> list[tuple[int, str]]:
        """The questions in the text of a file, here one a line, with the number of the line."""
        lines = enumerate(text.split("\n"), 1)
        return [(number, line) for number, line in lines if line.strip()]

    def typed(self, text: str) -> list[tuple[str, str]]:
        """The questions that an argument of the command line names.

        Args:
            text: A question, the name of a file, or "-" for the standard input. A file has one
                question a line, or is CSV with a column `question`.

        Returns:
            Each with where it stands, as "puzzles.txt, line 3: "; "" for one that was typed.
        """
        path = Path(text)
        short = "\n" not in text and len(text) < 200
        # Pipes of a shell are files as well.
        is_file = short and path.exists() and not path.is_dir()
        if is_file and path.suffix == ".safetensors":
            raise ValueError(
                f"{text} is a model, which `--checkpoint` names: here belongs a {self.noun}, or a "
                f"file of {self.noun}s."
            )
        if text != "-" and not is_file:
            if FILE_NAME.search(text) and "\n" not in text:
                what = "a folder" if path.is_dir() else "no such file"
                raise ValueError(
                    f"{text!r:.200} is {what}. Name a file with one {self.noun} a line, or "
                    f"type the {self.noun} itself."
                )
            return [("", text)]
        name = "standard input" if text == "-" else str(path)
        try:
            content = sys.stdin.read() if text == "-" else path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name} is not UTF-8 text ({error}). Convert it, or name a file with one "
                f"{self.noun} a line."
            ) from error
        content = content.removeprefix("\ufeff")
        first = content.split("\n", 1)[0]
        if ("," in first and not first.startswith("#")) or first.strip(' "\r') == "question":
            from tasks.puzzles.rows import questions_of_csv

            found = questions_of_csv(content, name)
        else:
            found = self.split(content)
        return [(f"{name}, line {number}: ", question) for number, question in found]

    def parse_typed(self, text: str) -> list[Puzzle]:
        """The puzzles that an argument names, with their exact answers; see `typed`.

        Raises:
            ValueError: One is no question or has no answer; of a file, the message says which line.
        """
        puzzles = []
        for where, question in self.typed(text):
            try:
                puzzles.append(self.parse(question))
            except ValueError as error:
                if where:
                    raise ValueError(f"{where}{error}") from error
                if text.isalpha():  # rather a name than a puzzle
                    raise ValueError(f"{error} There is no file {text!r}, either.") from error
                raise
        return puzzles

    def show(self, x: Sequence[int], classes: Sequence[int]) -> str:
        """A question and its answer as text for the terminal: here, the answer's rows."""
        cells, side = self.line([c + self.first_symbol for c in classes]), math.isqrt(len(classes))
        return "\n".join(" ".join(cells[i : i + side]) for i in range(0, len(cells), side))

    def picture(self, x: Sequence[int], answer: Sequence[int]) -> GridPicture:
        """How a question is drawn at a moment of its solve; both are symbols."""
        from tasks.puzzles.pictures import GridPicture

        return GridPicture(math.isqrt(len(x)), x, answer, self.symbols, self.first_symbol)

    def draw(self, puzzle: Puzzle, frames: Frames, config: C, folder: Path) -> list[Path]:
        """Draw the solve of one puzzle: a sheet and an animation; return the paths."""
        from tasks.puzzles.pictures import animate, draw_sheet

        x, classes = (rows[0].tolist() for rows in self.encode([puzzle], config))
        picture = self.picture(x, [c + self.first_symbol for c in classes])
        return [
            draw_sheet(frames, picture, folder / "convergence.png"),
            animate(frames, picture, folder / "convergence.gif", config.solve.rtol),
        ]

    def load(self, config: C) -> tuple[list[Puzzle], list[Puzzle]]:
        """The training and test puzzles of a configuration, read from its files or generated.

        Raises:
            ValueError: There are too few to fill a batch, or a file is not there.
        """
        files = config.data.train_data, config.data.test_data
        for name, file in zip(("train_data", "test_data"), files, strict=True):
            if file is not None:
                self.require_file(file, flag(name))
        made = self.make(config) if None in files else ([], [])
        sets = [self.read(f, config) if f else m for f, m in zip(files, made, strict=True)]
        train, test = sets
        if config.data.train_data and len(train) > config.data.train_puzzles:
            train = Random(config.train.seed).sample(train, config.data.train_puzzles)
        if len(train) < config.train.batch_size:
            raise ValueError(
                f"The training set has {len(train)} {self.noun}s, fewer than `batch_size` = "
                f"{config.train.batch_size}. Give more of them, or lower `--batch-size`."
            )
        return train, test

    def held_out(self, config: C) -> list[Puzzle]:
        """The test puzzles of a configuration alone; see `load`."""
        file = config.data.test_data
        return self.make(config)[1] if file is None else self.read(file, config)

    def require_file(self, path: Path, option: str) -> None:
        """Check that there is a file of puzzles.

        Args:
            path: The file.
            option: What names it, for the message.

        Raises:
            ValueError: There is none.
        """
        if str(path) == "-":
            raise ValueError(
                f"`{option}` takes a file, and not the standard input, which `solve` alone reads. "
                f"Write the {self.noun}s to a file and name it."
            )
        if not path.exists():
            raise ValueError(
                f"There is no file of {self.noun}s at {path}, which `{option}` names. Put it "
                f"there, or name another.{self.published}"
            )

    def overlap(self, train: Sequence[Puzzle], test: Sequence[Puzzle], config: C) -> int:
        """How many test puzzles are symmetric copies of a training puzzle."""
        known = {self.identity(puzzle, config) for puzzle in train}
        return sum(self.identity(puzzle, config) in known for puzzle in test)


def to_tensors(puzzles: Sequence[Puzzle], side: int, symbols: str) -> tuple[Tensor, Tensor]:
    """Questions and answers as numbers of symbols, which are the characters of a cell in order.

    Returns:
        Two long tensors of shape (puzzles, side * side).

    Raises:
        ValueError: A puzzle is of another size.
    """
    for number, puzzle in enumerate(puzzles):
        if not len(puzzle.question) == len(puzzle.answer) == side**2:
            raise ValueError(
                f"Puzzle {number} has a question of {len(puzzle.question)} cells and an answer of "
                f"{len(puzzle.answer)}; a grid of {side}x{side} has {side**2}."
            )
    numbers = bytes.maketrans(symbols.encode(), bytes(range(len(symbols))))

    def rows(texts: list[str]) -> Tensor:
        if not texts:
            return torch.empty(0, side**2, dtype=torch.long)
        cells = bytearray("".join(texts).encode("ascii").translate(numbers))
        return torch.frombuffer(cells, dtype=torch.uint8).long().view(len(texts), -1)

    return rows([p.question for p in puzzles]), rows([p.answer for p in puzzles])


def square_symmetries(num_cells: int) -> Tensor:
    """The rotations and reflections of a square grid.

    Returns:
        Shape (8, cells): for each cell of each copy, the cell of the original that it is.
    """
    side = math.isqrt(num_cells)
    cells = torch.arange(num_cells).view(side, side)
    turned = [cells.rot90(turns) for turns in range(4)]
    return torch.stack([copy.flatten() for grid in turned for copy in (grid, grid.T)])
