"""Weights by a formula, the same for our modules as they were for the published ones."""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def fill(weight: Tensor, seed: int, scale: float, plus: float = 0.0) -> None:
    """Set a tensor to plus + scale * sin(n (1 + seed / 7) + seed), n its entries in order."""
    n = torch.arange(weight.numel()).reshape(weight.shape)
    weight.copy_(plus + scale * torch.sin(n * (1.0 + seed / 7) + seed))


def halves_of_heads(width: int, num_heads: int) -> Tensor:
    """The order of the rows of a query's or key's matrix of the public code in ours.

    Neighbouring dims of a head are turned together there, and here those half a head apart.
    """
    head = torch.arange(width).view(num_heads, -1)
    return torch.cat((head[:, ::2], head[:, 1::2]), 1).flatten()


def fill_block(block: Any, seed: int) -> None:
    """Fill query, key, value, output and both matrices of the MLP with six seeds from this one."""
    mixer, mlp = block.mixer, block.mlp
    width = len(mixer.out.weight)
    rows = halves_of_heads(width, mixer.num_heads)
    query, key, value = torch.empty(3, width, width)
    parts = (query, key, value, mixer.out.weight, mlp.into.weight, mlp.out.weight)
    for number, part in enumerate(parts, start=seed):
        fill(part, number, 0.2)
    with torch.no_grad():
        mixer.qkv.weight.copy_(torch.cat((query[rows], key[rows], value)))
        mlp.out.weight.mul_(0.5)  # whose input is halved there
