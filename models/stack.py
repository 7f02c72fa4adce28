"""Blocks in a row."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from models.attention import Past
from models.blocks import PreNormBlock


class Stack(nn.Module):
    """Blocks one after the other."""

    def __init__(self, blocks: Iterable[PreNormBlock]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def __iter__(self) -> Iterator[PreNormBlock]:
        return iter(self.blocks)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.blocks)

    def forward(self, h: Tensor) -> Tensor:
        """Shape (B, T, D) in and out."""
        for block in self:
            h = block(h)
        return h

    def extend(self, h: Tensor, past: Sequence[Any]) -> tuple[Tensor, tuple[Any, ...]]:
        """As `forward`, for tokens that follow `past`, one per block."""
        return _extend(self, h, past)

    def remember(self, h: Tensor, past: Sequence[Any]) -> tuple[Any, ...]:
        """The past that `extend` returns, without the output."""
        *first, last = self
        h, longer = _extend(first, h, past[:-1])
        return (*longer, last.remember(h, past[-1]))

    def empty_past(self, valid: Bool[Tensor, "B T"]) -> tuple[Any, ...]:
        """Nothing yet, for each block."""
        return tuple(block.mixer.empty_past(valid) for block in self)


def _extend(
    blocks: Iterable[PreNormBlock], h: Tensor, past: Sequence[Any]
) -> tuple[Tensor, tuple[Any, ...]]:
    if not torch.is_grad_enabled():
        past = with_room(past, h.shape[1])
    longer = []
    for block, before in zip(blocks, past, strict=True):
        h, after = block.extend(h, before)
        longer.append(after)
    return h, tuple(longer)


def with_room(past: Sequence[Any], count: int) -> tuple[Any, ...]:
    """Room for so many tokens where the past is that of attention; see `Past.with_room`."""
    given, like = [], None
    for before in past:
        if isinstance(before, Past) and not before.room:
            # Positions and padding are worked out once for all blocks.
            before = like = before.with_room(count, like)
        given.append(before)
    return tuple(given)
