"""Mixers that carry a state from token to token instead of looking back: a scan, and a GRU.

Both take the place of attention in a `PreNormBlock`. Neither has biases on its inputs, so padding
on the left, as zeros, leaves the state at zero.

Legend: B batch, T tokens, D width.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class RecurrentCache(NamedTuple):
    """What a recurrent mixer keeps of the tokens so far.

    Attributes:
        state: Shape (B, D): the state after the last token.
        valid: Shape (B, T), bool: which of the next tokens are no padding; or (B, 0) if all are.
    """

    state: Tensor
    valid: Tensor

    def select(self, rows: Int[Tensor, " N"]) -> "RecurrentCache":
        """Return the cache of these sequences, of which one may be chosen more than once."""
        return RecurrentCache(self.state[rows], self.valid[rows])


class Scan(nn.Module):
    """Gated linear recurrence: s_t = a_t s_{t-1} + (1 - a_t) v_t, with a_t from the token.

    The state-space mixer in its simplest selective form: diagonal, and so a scan that takes
    log T steps in parallel.

    Args:
        width: D.

    References:
        A. Gu, T. Dao, Mamba, 2023, arXiv:2312.00752, sec. 3.5, theorem 1 (this recurrence).
        L. Feng et al., Were RNNs All We Needed?, 2024, arXiv:2410.01201 (minGRU).
    """

    def __init__(self, width: int):
        super().__init__()
        self.into = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        # The memory of channels ranges from two tokens to hundreds.
        self.decay = nn.Parameter(torch.linspace(0.0, 6.0, width))

    def extend(
        self, h_BTD: Float[Tensor, "B T D"], past: RecurrentCache | None
    ) -> tuple[Float[Tensor, "B T D"], RecurrentCache]:
        """Mix new tokens; see `SelfAttention.extend`."""
        keep, value, gate = self.into(_without_padding(h_BTD, past)).chunk(3, -1)
        keep = torch.sigmoid(keep + self.decay)
        added = (1 - keep) * value
        if past is not None:
            first = torch.addcmul(added[:, :1], keep[:, :1], past.state[:, None])
            added = torch.cat((first, added[:, 1:]), 1)
        state = scan(keep, added)
        return self.out(state * F.silu(gate)), _cache_of(state)

    def empty_cache(self, valid: Bool[Tensor, "B T"]) -> RecurrentCache:
        """The cache before a prompt, of which `valid` tells tokens from padding."""
        return RecurrentCache(
            self.out.weight.detach().new_zeros(len(valid), len(self.decay)), valid
        )


class Gru(nn.Module):
    """A gated recurrent unit and a linear map.

    Args:
        width: D.

    References:
        K. Cho et al., Learning Phrase Representations, EMNLP 2014, arXiv:1406.1078.
    """

    def __init__(self, width: int):
        super().__init__()
        self.unit = nn.GRU(width, width, bias=False, batch_first=True)
        self.out = nn.Linear(width, width, bias=False)

    def extend(
        self, h_BTD: Float[Tensor, "B T D"], past: RecurrentCache | None
    ) -> tuple[Float[Tensor, "B T D"], RecurrentCache]:
        """Mix new tokens; see `SelfAttention.extend`."""
        state = None if past is None else past.state[None].contiguous()
        mixed, _ = self.unit(_without_padding(h_BTD, past), state)
        return self.out(mixed), _cache_of(mixed)

    def empty_cache(self, valid: Bool[Tensor, "B T"]) -> RecurrentCache:
        """The cache before a prompt, of which `valid` tells tokens from padding."""
        weight = self.out.weight.detach()
        return RecurrentCache(weight.new_zeros(len(valid), len(weight)), valid)


def scan(a: Float[Tensor, "B T D"], b: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """Compute s_t = a_t s_{t-1} + b_t from s_{-1} = 0 in parallel, in log2 T rounds.

    References:
        W. D. Hillis, G. L. Steele, Data Parallel Algorithms, CACM 1986.
    """
    reach = 1
    while reach < a.shape[1]:
        b = torch.cat((b[:, :reach], torch.addcmul(b[:, reach:], a[:, reach:], b[:, :-reach])), 1)
        a = torch.cat((a[:, :reach], a[:, reach:] * a[:, :-reach]), 1)
        reach *= 2
    return b


def _without_padding(h: Tensor, past: RecurrentCache | None) -> Tensor:
    if past is None or past.valid.shape[1] == 0:
        return h
    return h * past.valid[..., None]


def _cache_of(state: Tensor) -> RecurrentCache:
    return RecurrentCache(state[:, -1], torch.ones_like(state[:, :0, 0], dtype=torch.bool))
