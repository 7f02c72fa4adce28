"""Puzzles as tensors, and random symmetric copies of whole batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.sudoku.board import Board, Puzzle, PuzzleError


def to_tensors(puzzles: Sequence[Puzzle], board: Board) -> tuple[Tensor, Tensor]:
    """Questions and answers as digits.

    Returns:
        Two long tensors of shape (puzzles, cells), 0 for a blank.

    Raises:
        PuzzleError: A puzzle is not of this board's size.
    """
    for number, puzzle in enumerate(puzzles):
        if not len(puzzle.question) == len(puzzle.answer) == board.num_cells:
            raise PuzzleError(
                f"Puzzle {number} has a question of {len(puzzle.question)} cells and an answer of "
                f"{len(puzzle.answer)}; a {board.name} board has {board.num_cells}."
            )
    questions = _digits([puzzle.question for puzzle in puzzles], board)
    return questions, _digits([puzzle.answer for puzzle in puzzles], board)


def _digits(lines: list[str], board: Board) -> Tensor:
    if not lines:
        return torch.empty(0, board.num_cells, dtype=torch.long)
    characters = bytearray("".join(lines).replace(".", "0"), "ascii")
    return (torch.frombuffer(characters, dtype=torch.uint8).long() - ord("0")).view(len(lines), -1)


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
    source = _random_places(len(questions), board, generator).to(questions.device)
    names = _random_names(len(questions), board, generator).to(questions.device)
    return (
        names.gather(1, questions.gather(1, source)),
        names.gather(1, answers.gather(1, source)),
    )


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
    rows = []
    for row, (number, key) in enumerate(zip(numbers.tolist(), keys.tolist(), strict=True)):
        pair = questions[row : row + 1], answers[row : row + 1]
        if number:
            pair = augment(*pair, board, torch.Generator().manual_seed((seed << 32) + key))
        rows.append(pair)
    xs, ys = zip(*rows, strict=True)
    return torch.cat(xs), torch.cat(ys)


def _random_places(batch: int, board: Board, generator: torch.Generator) -> Tensor:
    """For each cell of each copy the cell of the original it is taken from, (batch, cells)."""
    rows = _random_lines(batch, board.side, board.box_rows, generator)
    columns = _random_lines(batch, board.side, board.box_cols, generator)
    source = rows[:, :, None] * board.side + columns[:, None, :]
    if board.can_transpose:
        swap = torch.rand(batch, 1, 1, generator=generator, device=generator.device) < 0.5
        source = torch.where(swap, source.transpose(1, 2), source)
    return source.flatten(1)


def _random_lines(batch: int, side: int, width: int, generator: torch.Generator) -> Tensor:
    """Orders of the rows that keep bands of `width` together, (batch, side); columns alike."""
    bands = _random_orders((batch, side // width), generator)
    within = _random_orders((batch, side // width, width), generator)
    return (bands[:, :, None] * width + within).flatten(1)


def _random_names(batch: int, board: Board, generator: torch.Generator) -> Tensor:
    """For each copy the new digit of 0 (always 0), 1, 2, ..., (batch, side + 1)."""
    digits = _random_orders((batch, board.side), generator) + 1
    return torch.nn.functional.pad(digits, (1, 0))


def _random_orders(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent permutations along the last axis."""
    return torch.rand(shape, generator=generator, device=generator.device).argsort(-1)
