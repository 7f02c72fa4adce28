"""The initial weights of language models as in the public code of arXiv:2605.12466.

All maps but the last of each branch begin as orthogonal matrices whose entries have the variance
2 / (5 D), the embedding too. The last one of each branch begins at zero, so that a backbone begins
as the identity. In a refiner it must not: the map would be constant, and its gates would get no
gradient. There it is normal, cut off at three standard deviations. The public code halves the
squared ReLU of an MLP, and ours does not: half of its last matrix is the same network. Parcae's
loop starts from normal numbers of that variance, cut off likewise.

Legend: D width.

References:
    `attractor/utils/init.py` ("scaled-zero", orthogonal) and `FixedPointBlock` of
    https://github.com/jacobfa/Attractor. T. Nguyen, J. Salazar, Transformers without Tears,
    IWSLT 2019, arXiv:1910.05895 (the variance).
"""

import math

import torch
from torch import Tensor, nn

from models.blocks import PreNormBlock


def released_block_(block: PreNormBlock, width: int) -> None:
    """Draw the weights of a block with attention anew; one with gates is a refiner's."""
    released_matrix_(block.mlp.into.weight, width)
    for part in block.mixer.qkv.weight.chunk(3):
        released_matrix_(part, width)
    for out, std in ((block.mixer.out, _std(width)), (block.mlp.out, _std(width) / 2)):
        if block.gate is None:
            nn.init.zeros_(out.weight)
        else:
            nn.init.trunc_normal_(out.weight, std=std, a=-3 * std, b=3 * std)


def released_matrix_(weight: Tensor, width: int) -> None:
    """Draw a matrix, or the rows of a larger one, anew."""
    nn.init.orthogonal_(weight, _std(width) * math.sqrt(max(weight.shape)))


def released_state(like: Tensor) -> Tensor:
    """Draw states of shape (..., D), as large as embeddings are at first."""
    std = _std(like.shape[-1])
    return nn.init.trunc_normal_(torch.empty_like(like), std=std, a=-3 * std, b=3 * std)


def _std(width: int) -> float:
    return math.sqrt(2 / (5 * width))
