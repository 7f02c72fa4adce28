"""Random symmetric copies of whole batches of puzzles."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tasks.sudoku.board import Board

Uniform = Callable[[tuple[int, ...]], Tensor]
"""Numbers in [0, 1) of a shape that leads with the batch."""


def augment(
    questions: Tensor, answers: Tensor, board: Board, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace every puzzle by a random symmetric copy of itself.

    Each puzzle draws its own element of the symmetry group, uniformly: new names for the digits,
    an order of the bands, of the rows in each band, of the stacks, of the columns in each stack,
    and, where boxes are square, whether rows and columns swap. A copy is as hard as its original
    for anyone who treats digits and places alike, and its answer stays the only one.

    Args:
        questions: Digits, (batch, cells), 0 for a blank.
        answers: Digits, (batch, cells).
        board: The geometry.
        generator: Source of all randomness; its state alone determines the result.

    Returns:
        The copies of `questions` and of `answers`.
    """

    def uniform(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device)

    return _copies(questions, answers, board, uniform)


def numbered_copies(
    questions: Tensor, answers: Tensor, numbers: Tensor, keys: Tensor, board: Board, seed: int
) -> tuple[Tensor, Tensor]:
    """Replace every puzzle by a certain one of its symmetric copies.

    The published Sudoku-Extreme runs train on 1000 copies of each of 1000 puzzles, made once,
    of which copy 0 is the puzzle itself. Copies are made when they are needed here, always the
    same, so a million of them take no room.

    Args:
        questions: Digits, (batch, cells), 0 for a blank.
        answers: Digits, (batch, cells).
        numbers: Number of the copy, (batch,).
        keys: What determines the copy beside `seed`: one number per puzzle and copy, (batch,).
        board: The geometry.
        seed: Of all copies.
    """
    x, y = _copies(questions, answers, board, _Numbered(keys, seed))
    original = (numbers == 0)[:, None]
    return torch.where(original, questions, x), torch.where(original, answers, y)


def reveal(questions: Tensor, answers: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Make puzzles easier: fill in from 0 to `most` of a question's blanks, each as likely.

    Args:
        questions: Digits, (batch, cells), 0 for a blank.
        answers: Digits, (batch, cells).
        most: Most blanks to fill in.
        generator: Source of all randomness.
    """
    count = torch.randint(most + 1, (len(questions), 1), generator=generator)
    order = torch.rand(questions.shape, generator=generator)
    rank = order.masked_fill(questions > 0, 2.0).argsort(1).argsort(1)
    return torch.where((rank < count) & (questions == 0), answers, questions)


class _Numbered:
    """Uniform random numbers that depend only on a seed, a key per row, and their position.

    References:
        G. L. Steele, D. Lea, C. H. Flood, Fast Splittable Pseudorandom Number Generators,
        OOPSLA 2014 (the mixing function of SplitMix64).
    """

    def __init__(self, keys: Tensor, seed: int):
        self.state = _mix(keys + _mix(torch.tensor(seed)))
        self.position = 0

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        count = math.prod(shape[1:])
        steps = torch.arange(self.position, self.position + count) + 1
        self.position += count
        bits = _mix(self.state[:, None] + steps * -7046029254386353131)
        return (_shift(bits, 11) * 2.0**-53).view(shape)


def _mix(z: Tensor) -> Tensor:
    """Scramble 64-bit integers."""
    z = (z ^ _shift(z, 30)) * -4658895280553007687
    z = (z ^ _shift(z, 27)) * -7723592293110705685
    return z ^ _shift(z, 31)


def _shift(z: Tensor, count: int) -> Tensor:
    """Shift to the right as an unsigned integer does."""
    return (z >> count) & ((1 << (64 - count)) - 1)


def _copies(
    questions: Tensor, answers: Tensor, board: Board, uniform: Uniform
) -> tuple[Tensor, Tensor]:
    source = _random_places(len(questions), board, uniform).to(questions.device)
    names = _random_names(len(questions), board, uniform).to(questions.device)
    return (
        names.gather(1, questions.gather(1, source)),
        names.gather(1, answers.gather(1, source)),
    )


def _random_places(batch: int, board: Board, uniform: Uniform) -> Tensor:
    """For each cell of each copy the cell of the original it is taken from, (batch, cells)."""
    rows = _random_lines(batch, board.side, board.box_rows, uniform)
    columns = _random_lines(batch, board.side, board.box_cols, uniform)
    source = rows[:, :, None] * board.side + columns[:, None, :]
    if board.can_transpose:
        swap = uniform((batch, 1, 1)) < 0.5
        source = torch.where(swap, source.transpose(1, 2), source)
    return source.flatten(1)


def _random_lines(batch: int, side: int, width: int, uniform: Uniform) -> Tensor:
    """Orders of the rows that keep bands of `width` together, (batch, side); columns alike."""
    bands = uniform((batch, side // width)).argsort(-1)
    within = uniform((batch, side // width, width)).argsort(-1)
    return (bands[:, :, None] * width + within).flatten(1)


def _random_names(batch: int, board: Board, uniform: Uniform) -> Tensor:
    """For each copy the new digit of 0 (always 0), 1, 2, ..., (batch, side + 1)."""
    digits = uniform((batch, board.side)).argsort(-1) + 1
    return torch.nn.functional.pad(digits, (1, 0))
