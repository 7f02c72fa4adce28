"""Blocks applied one after the other, with a cache for each of them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from models.attention import KVCache
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
        """As `forward`, for tokens that follow those of `past`, which holds a cache per block."""
        return _extend(self, h, past)

    def remember(self, h: Tensor, past: Sequence[Any]) -> tuple[Any, ...]:
        """Return the caches that `extend` returns, without the output."""
        *first, last = self
        h, longer = _extend(first, h, past[:-1])
        return (*longer, last.remember(h, past[-1]))

    def empty_caches(self, valid: Bool[Tensor, "B T"]) -> tuple[Any, ...]:
        """The cache of each block before a prompt, of which `valid` tells tokens from padding."""
        return tuple(block.mixer.empty_cache(valid) for block in self)


def _extend(
    blocks: Iterable[PreNormBlock], h: Tensor, past: Sequence[Any]
) -> tuple[Tensor, tuple[Any, ...]]:
    if not torch.is_grad_enabled():
        past = reserve(past, h.shape[1])
    longer = []
    for block, before in zip(blocks, past, strict=True):
        h, after = block.extend(h, before)
        longer.append(after)
    return h, tuple(longer)


def reserve(past: Sequence[Any], count: int) -> tuple[Any, ...]:
    """Reserve space for new tokens in all caches of attention; see `KVCache.reserve`."""
    reserved, like = [], None
    for cache in past:
        if isinstance(cache, KVCache) and not cache.reserved:
            # Positions and padding are worked out once for all blocks.
            cache = like = cache.reserve(count, like)
        reserved.append(cache)
    return tuple(reserved)
