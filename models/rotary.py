"""Rotary positions: queries and keys are rotated by angles that grow with their position.

Legend: B batch, T tokens, H heads, K width of a head.

References:
    J. Su et al., RoFormer, 2021, arXiv:2104.09864.
"""

import torch
from jaxtyping import Int
from torch import Tensor

# As in the paper that brought rotary positions.
ROTARY_BASE = 10_000.0

Rotary = tuple[Tensor, Tensor]
"""The factors of a rotation: cosines and sines; see `rotary_at`."""


def rotate(x: Tensor, rotary: Rotary | None = None, base: float = ROTARY_BASE) -> Tensor:
    """Rotate each pair of dims of a token by an angle that grows with its position.

    Args:
        x: Shape (..., B, H, T, K).
        rotary: The factors of `rotary_at`; by default those of positions 0 to T - 1.
        base: For these.
    """
    if rotary is None:
        rotary = rotary_at(torch.arange(x.shape[-2], device=x.device)[None], x, base)
    cos, sin = rotary
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def rotary_at(position: Int[Tensor, "B T"], like: Tensor, base: float = ROTARY_BASE) -> Rotary:
    """The factors by which `rotate` multiplies each dim and its partner, shapes (B, 1, T, K).

    The partner of dim i is i + K / 2, and the angle of both is position * base^(-2 i / K). The
    first tensor holds the cosines; the second the sines, negative for the first half of the dims.

    Args:
        position: The positions of the tokens; one row may do for all sequences.
        like: A tensor whose dtype the factors take, and whose last dim is K.
        base: Of the angles, the same for all blocks of a model, which share the factors.
    """
    pairs = like.shape[-1] // 2
    rates = base ** (-torch.arange(pairs, device=like.device) / pairs)
    angle = position[:, None, :, None] * rates
    cos, sin = angle.cos().to(like.dtype), angle.sin().to(like.dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
