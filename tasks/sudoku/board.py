"""Sudoku boards: geometry, parsing and formatting, and the check of an answer.

A grid is a flat sequence of `side * side` digits, row by row, with 0 for a blank. Digits above 9
are written as letters: A is 10, B is 11, and so on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn

from tasks.puzzles.puzzle import place, place_in_text

if TYPE_CHECKING:
    from torch import Tensor

SYMBOLS = ".123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LARGEST = len(SYMBOLS) - 1  # side of a board whose digits are single characters
_FRAME = "|+-"  # drawn by `format_grid`, ignored by `parse`, so that a drawing can be pasted
_DIGITS = "0123456789."
_CELLS = _DIGITS + SYMBOLS[10:] + SYMBOLS[10:].lower()
_TO_CHARACTERS = bytes.maketrans(bytes(range(len(SYMBOLS))), SYMBOLS.encode())
_TO_VALUES = bytes.maketrans(
    _CELLS.encode(), bytes([*range(10), 0, *range(10, LARGEST + 1), *range(10, LARGEST + 1)])
)


class PuzzleError(ValueError):
    """A text, a clue or an answer that is not a proper Sudoku."""


@functools.cache
def _box_shape(side: int) -> tuple[int, int] | None:
    """Rows and columns of a box: the most square one, lying; None if there is none."""
    shapes = [(rows, side // rows) for rows in range(2, math.isqrt(side) + 1) if side % rows == 0]
    return shapes[-1] if shapes else None


SIDES = tuple(side for side in range(4, LARGEST + 1) if _box_shape(side))
"""The sides that a board may have: 4, 6, 8, 9, 10, 12 and so on, but no prime numbers."""


@dataclass(frozen=True)
class Board:
    """The geometry of one board size. Rows, columns, boxes and cells count from 0.

    Args:
        side: A product of rows and columns of a box, both at least 2: one of `SIDES`. Of several
            shapes of a box the most square one is taken, with no more rows than columns: 2 x 3
            for a side of 6, 3 x 4 for 12, 4 x 4 for 16.

    Raises:
        ValueError: No board has this side.

    Example:
        >>> board = Board.of(6)
        >>> board.box_rows, board.box_cols, board.num_cells
        (2, 3, 36)
        >>> board.groups[-1]
        (27, 28, 29, 33, 34, 35)
    """

    side: int

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise ValueError(_no_board(self.side))

    @staticmethod
    @functools.cache
    def of(side: int) -> Board:
        """The board of this side: always the same object, so its tables are built once."""
        return Board(side)

    @staticmethod
    def for_length(num_cells: int) -> Board:
        """The board that has this many cells."""
        side = math.isqrt(num_cells)
        if side * side == num_cells and side in SIDES:
            return Board.of(side)
        # A text of a few characters is a slip, and seldom meant as the smallest board.
        sides = _nearest(math.sqrt(num_cells)) if num_cells >= SIDES[0] ** 2 else (*SIDES[:2], 9)
        near = " or ".join(f"{each**2} ({each}x{each})" for each in sides)
        raise PuzzleError(_wrong_length(num_cells, near))

    @cached_property
    def box_rows(self) -> int:
        """Number of rows in a box, and so in a band."""
        return (_box_shape(self.side) or (0, 0))[0]

    @cached_property
    def box_cols(self) -> int:
        """Number of columns in a box, and so in a stack."""
        return (_box_shape(self.side) or (0, 0))[1]

    @property
    def num_cells(self) -> int:
        """Number of cells on the board."""
        return self.side * self.side

    @property
    def can_transpose(self) -> bool:
        """Whether swapping rows and columns maps boxes to boxes."""
        return self.box_rows == self.box_cols

    @property
    def name(self) -> str:
        """The name of the size in messages, as `9x9`."""
        return f"{self.side}x{self.side}"

    @property
    def digits(self) -> str:
        """The characters of its digits for messages, as `1 to 9 and A to G`."""
        if self.side <= 9:
            return f"1 to {self.side}"
        letters = "A" if self.side == 10 else f"A to {SYMBOLS[self.side]}"
        return f"1 to 9 and {letters}"

    @cached_property
    def row_of(self) -> tuple[int, ...]:
        """The row of each cell."""
        return tuple(cell // self.side for cell in range(self.num_cells))

    @cached_property
    def column_of(self) -> tuple[int, ...]:
        """The column of each cell."""
        return tuple(cell % self.side for cell in range(self.num_cells))

    @cached_property
    def box_of(self) -> tuple[int, ...]:
        """The box of each cell; boxes count row by row, like cells."""
        boxes_across = self.side // self.box_cols
        return tuple(
            row // self.box_rows * boxes_across + column // self.box_cols
            for row, column in zip(self.row_of, self.column_of, strict=True)
        )

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The cells of every row, then of every column, then of every box."""
        kinds: list[list[list[int]]] = []
        for index_of in (self.row_of, self.column_of, self.box_of):
            kinds.append([[] for _ in range(self.side)])
            for cell, index in enumerate(index_of):
                kinds[-1][index].append(cell)
        return tuple(tuple(group) for kind in kinds for group in kind)

    @cached_property
    def peers(self) -> tuple[tuple[int, ...], ...]:
        """For each cell the others that share a row, a column or a box with it."""
        found: list[set[int]] = [set() for _ in range(self.num_cells)]
        for group in self.groups:
            for cell in group:
                found[cell].update(group)
        return tuple(tuple(sorted(others - {cell})) for cell, others in enumerate(found))

    def place(self, cell: int) -> str:
        """Row and column of a cell for messages; see `tasks.puzzles.puzzle.place`."""
        return place(cell, self.side)


def parse(text: str, board: Board | None = None, *, check_clues: bool = True) -> list[int]:
    """Read a grid from text.

    White space and the lines that `format_grid` draws are ignored, so a line from a file and a
    pasted drawing both work.

    Args:
        text: Digits, those above 9 as letters of either case, and `.` or `0` for a blank.
        board: The board expected; by default the one with as many cells as `text` has.
        check_clues: Also refuse a digit that stands twice in a row, column or box.

    Returns:
        One digit a cell, 0 for a blank.

    Raises:
        PuzzleError: A wrong character, a wrong length, or clues that contradict each other.

    Example:
        >>> parse("1... ..3. .4.. ...2")
        [1, 0, 0, 0, 0, 0, 3, 0, 0, 4, 0, 0, 0, 0, 0, 2]
    """
    cells = "".join(text.split())
    if cells.strip(_CELLS):  # empty when there is nothing but digits and blanks
        _check_characters(text, _CELLS)
        cells = "".join(character for character in cells if character not in _FRAME)
    if board is None:
        board = Board.for_length(len(cells))
    elif len(cells) != board.num_cells:
        raise PuzzleError(_wrong_length(len(cells), f"{board.num_cells} ({board.name})"))
    grid = list(cells.encode("ascii").translate(_TO_VALUES))
    if max(grid) > board.side:
        if board.side <= 9:
            _check_characters(text, _DIGITS)
        _refuse_large_digit(grid, board)
    if check_clues:
        _check_clues(grid, board)
    return grid


def _nearest(side: float) -> list[int]:
    """The next smaller and the next larger side of a board, if there are such."""
    return [*[each for each in SIDES if each < side][-1:], *[e for e in SIDES if e > side][:1]]


def _no_board(side: object) -> str:
    near = _nearest(side) if isinstance(side, int) else SIDES[:3]
    return (
        "`side` must be the product of the rows and the columns of a box, both at least 2, and at "
        f"most {LARGEST}: got {side!r}. Near it: {' and '.join(map(str, near))}."
    )


def _wrong_length(length: int, allowed: str) -> str:
    return (
        f"A grid must have {allowed} cells, got {length}. Write one character a cell, blanks as "
        "`.` or `0`; white space and the frame characters `|`, `+` and `-` do not count."
    )


def _check_characters(text: str, allowed: str) -> None:
    cells = [character for character in text if not character.isspace() and character not in _FRAME]
    for position, character in enumerate(cells):
        if character not in allowed:
            where = place_in_text(position, len(cells))
            letters = ", letters for those above 9" if allowed == _CELLS else ""
            raise PuzzleError(
                f"Character {character!r} at {where} is not allowed in a grid: use "
                f"digits{letters}, and `.` or `0` for a blank."
            )


def _refuse_large_digit(grid: Sequence[int], board: Board) -> NoReturn:
    cell = next(cell for cell, digit in enumerate(grid) if digit > board.side)
    raise PuzzleError(
        f"Digit {SYMBOLS[grid[cell]]} at {board.place(cell)} is too large: a {board.name} board "
        f"has the digits {board.digits}, and `.` or `0` for a blank."
    )


def _check_clues(grid: Sequence[int], board: Board) -> None:
    for index, group in enumerate(board.groups):
        first_cell: dict[int, int] = {}
        for cell in group:
            digit = grid[cell]
            if digit and first_cell.setdefault(digit, cell) != cell:
                kind = ("row", "column", "box")[index // board.side]
                raise PuzzleError(
                    f"Digit {SYMBOLS[digit]} stands twice in one {kind}: at "
                    f"{board.place(first_cell[digit])} and at {board.place(cell)}."
                )


def check_answer(question: Sequence[int], answer: Sequence[int], board: Board) -> None:
    """Refuse an answer that is incomplete, changes a clue, or breaks a rule.

    Raises:
        PuzzleError: Says what is wrong, and in which cells.
    """
    for cell, (clue, digit) in enumerate(zip(question, answer, strict=True)):
        if not digit:
            raise PuzzleError(f"The answer leaves {board.place(cell)} blank.")
        if clue not in (0, digit):
            raise PuzzleError(
                f"The answer has {SYMBOLS[digit]} at {board.place(cell)}, where the question has "
                f"{SYMBOLS[clue]}."
            )
    try:
        _check_clues(answer, board)
    except PuzzleError as error:
        raise PuzzleError(f"The answer is wrong. {error}") from None


def format_line(grid: Sequence[int]) -> str:
    """Write a grid as one line, blanks as `.`."""
    # `list` first: `bytes` of an array or a tensor would be its memory, not its entries.
    return bytes(list(grid)).translate(_TO_CHARACTERS).decode("ascii")


def format_grid(grid: Sequence[int], given: Sequence[int] | None = None) -> str:
    """Draw a grid with its boxes.

    Args:
        grid: One digit a cell, 0 for a blank.
        given: The question, where `grid` answers one: each clue gets a `*`, and each digit that
            took the place of a clue a `!`.

    Example:
        >>> print(format_grid(parse("12.. 34.. ..1. .3.4")))
        1 2 | . .
        3 4 | . .
        ----+----
        . . | 1 .
        . 3 | . 4
    """
    board = Board.for_length(len(grid))
    width = 1 if given is None else 2
    texts = [SYMBOLS[digit] for digit in grid]
    if given is not None:
        marks = ["*" if digit == clue else "!" for digit, clue in zip(grid, given, strict=True)]
        texts = [
            text + mark if clue else text
            for text, mark, clue in zip(texts, marks, given, strict=True)
        ]
    lines = []
    for row in range(board.side):
        cells = [f"{text:<{width}}" for text in texts[row * board.side : (row + 1) * board.side]]
        boxes = [
            " ".join(cells[start : start + board.box_cols])
            for start in range(0, board.side, board.box_cols)
        ]
        if row and row % board.box_rows == 0:
            lines.append("-+-".join("-" * len(box) for box in boxes))
        lines.append(" | ".join(boxes).rstrip())
    return "\n".join(lines)


def is_valid_solution(puzzles: Tensor, answers: Tensor) -> Tensor:
    """Whether each answer solves its puzzle: every group a permutation, every clue kept.

    Args:
        puzzles: Clues, (batch, cells), 0 for a blank.
        answers: Proposed grids, (batch, cells); any integers, so a blank just counts as wrong.

    Returns:
        (batch,) bool.

    Raises:
        ValueError: The shapes differ, or no board has this many cells.
    """
    # Imported here so that the processes that generate puzzles start without loading torch.
    import torch

    if puzzles.shape != answers.shape:
        raise ValueError(
            "`puzzles` and `answers` must have the same shape: got "
            f"{tuple(puzzles.shape)} and {tuple(answers.shape)}."
        )
    board = Board.for_length(answers.shape[-1])
    answers = answers.long()
    in_range = ((answers >= 1) & (answers <= board.side)).all(-1)
    kept = ((puzzles == 0) | (puzzles == answers)).all(-1)
    # `side` powers of two below 2^side add up to 2^side - 1 only if they are all different.
    bits = torch.ones_like(answers) << (answers.clamp(1, board.side) - 1)
    groups = torch.tensor(board.groups, device=answers.device)
    sums = bits[..., groups].sum(-1)
    return in_range & kept & (sums == 2**board.side - 1).all(-1)
