"""Trained weights on boards of another size than those that they were trained on.

Some networks have no weight that belongs to a place or to a symbol: "candidates" of a Sudoku treats
all cells and digits alike. Their weights make a model for any side. Whether its answers are right
where it converges was measured on boards of the trained size alone, so whoever uses such a model
says so; see `caution`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import torch

from tasks.puzzles.config import GridConfig

C = TypeVar("C", bound=GridConfig)


def can_resize(config: GridConfig, side: int) -> bool:
    """Whether weights of a configuration make a model for boards of another side."""
    try:
        other = resized(config, side)
        with torch.device("meta"):
            return _shapes(config.build()) == _shapes(other.build())
    except ValueError:
        return False  # no board, or no question, has this size


def resized(config: C, side: int) -> C:
    """The same model on boards of another side; its puzzles are those of the defaults.

    Raises:
        ValueError: There are no such boards.
    """
    data = config.data_type(side=side, **config.any_size)
    return dataclasses.replace(config, data=data)


def at_size(
    model: Any, config: C, side: int | None, path: Path, noun: str
) -> tuple[Any, C, str | None]:
    """A trained model for boards of a side.

    Args:
        model: In evaluation mode.
        config: What it was trained with.
        side: Cells of a row; None for the size of the training.
        path: Where the model comes from, for messages.
        noun: What one puzzle is called.

    Returns:
        The model, its configuration and, where it was trained on another size, what is therefore
        not known of its answers.

    Raises:
        ValueError: It has weights that belong to the size that it was trained on, or no board has
            this side.
    """
    trained = config.spec().side
    if side is None or side == trained:
        return model, config, None
    try:
        resized(config, side)
    except ValueError as error:  # no board has this side
        raise ValueError(
            f"{path} solves {trained}x{trained} boards, but the {noun} is {side}x{side}: {error}"
        ) from error
    if not can_resize(config, side):
        raise ValueError(
            f"{path} solves {trained}x{trained} boards, but the {noun} is {side}x{side}, and the "
            f"weights of the layout {config.model.layout!r} do not fit that size. Name a model "
            "of that size."
        )
    other = resized(config, side)
    fresh: Any = other.build()
    fresh.load_state_dict(model.state_dict())
    if model.solving is not None:
        fresh.solving.solver = model.solving.solver
    fresh = fresh.to(next(model.parameters()).device).eval()
    return fresh, other, caution(trained, side)


def caution(trained: int, side: int) -> str:
    """What is not known of answers on another size than the trained one."""
    return (
        f"The weights were trained on {trained}x{trained} boards. That a converged answer is right "
        f"was only verified there, and not on {side}x{side}. Without `--checkpoint`, a model for "
        f"that size is taken if there is one; `train --side {side} --weights NAME` trains these on."
    )


def _shapes(model: Any) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
