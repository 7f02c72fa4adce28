"""Blocks applied one after the other, with a cache for each of them.

Legend: B batch, T tokens, V vocabulary, D width.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from models.attention import KVCache
from models.blocks import PreNormBlock

# The embeddings that each block adds to the values of its attention; None: none. Or nothing at all.
Values = Sequence[Tensor | None]


class Stack(nn.Module):
    """Blocks one after the other."""

    def __init__(self, blocks: Iterable[PreNormBlock]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def __iter__(self) -> Iterator[PreNormBlock]:
        return iter(self.blocks)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.blocks)

    def forward(self, h: Tensor, values: Values = ()) -> Tensor:
        """Shape (B, T, D) in and out; `values` has the value embeddings of each block, if any."""
        for block, value in zip(self, _each(values, len(self)), strict=True):
            h = block(h, *value)
        return h

    def extend(
        self, h: Tensor, past: Sequence[Any], values: Values = ()
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """As `forward`, for tokens that follow those of `past`, which holds a cache per block."""
        return _extend(self, h, past, values)

    def remember(self, h: Tensor, past: Sequence[Any]) -> tuple[Any, ...]:
        """Return the caches that `extend` returns, without the output."""
        *first, last = self
        h, longer = _extend(first, h, past[:-1])
        return (*longer, last.remember(h, past[-1]))

    def empty_caches(self, valid: Bool[Tensor, "B T"]) -> tuple[Any, ...]:
        """The cache of each block before a prompt, of which `valid` tells tokens from padding."""
        return tuple(block.mixer.empty_cache(valid) for block in self)


def _extend(
    blocks: Iterable[PreNormBlock], h: Tensor, past: Sequence[Any], values: Values = ()
) -> tuple[Tensor, tuple[Any, ...]]:
    if not torch.is_grad_enabled():
        past = reserve(past, h.shape[1])
    longer = []
    for block, before, value in zip(blocks, past, _each(values, len(past)), strict=True):
        h, after = block.extend(h, before, *value)
        longer.append(after)
    return h, tuple(longer)


class ValueEmbeddings(nn.Module):
    """Tables from which attention takes embeddings of the tokens, to add them to its values.

    Every second block of a model has one, and the last block is one of these.

    Args:
        vocabulary: V.
        width: D.
        sizes: Numbers of blocks of the stacks that tokens pass through, in their order.
        empty: No block has one.

    References:
        As in the public code of arXiv:2604.12946 and https://github.com/karpathy/nanochat; first
        in Z. Zhou et al., Value Residual Learning, arXiv:2410.17897.
    """

    def __init__(self, vocabulary: int, width: int, sizes: Sequence[int], empty: bool = False):
        super().__init__()
        self.sizes, blocks = tuple(sizes), sum(sizes)
        self.tables = nn.ModuleDict(
            {
                str(block): nn.Embedding(vocabulary, width)
                for block in range(blocks)
                if not empty and has_value_embeddings(blocks - 1 - block)
            }
        )

    def forward(self, ids: Int[Tensor, "B T"]) -> list[tuple[Values, ...]]:
        """The further arguments of each stack: its values, of shape (B, T, D) for a block, if any.

        There are none where no block has them, so that stacks of other kinds may be called too.
        """
        if not self.tables:
            return [()] * len(self.sizes)
        values = [
            self.tables[str(block)](ids) if str(block) in self.tables else None
            for block in range(sum(self.sizes))
        ]
        ends = itertools.accumulate(self.sizes)
        return [(values[end - size : end],) for size, end in zip(self.sizes, ends, strict=True)]


def has_value_embeddings(after: int) -> bool:
    """Whether a block with so many blocks after it is one of those with value embeddings."""
    return after % 2 == 0


def _each(values: Values, blocks: int) -> list[tuple[Tensor, ...]]:
    """The further arguments of each block."""
    return [() if value is None else (value,) for value in values or [None] * blocks]


def reserve(past: Sequence[Any], count: int) -> tuple[Any, ...]:
    """Reserve space for new tokens in all caches of attention; see `KVCache.reserve`."""
    reserved, like = [], None
    for cache in past:
        if isinstance(cache, KVCache) and not cache.reserved:
            # Positions and padding are worked out once for all blocks.
            cache = like = cache.reserve(count, like)
        reserved.append(cache)
    return tuple(reserved)
