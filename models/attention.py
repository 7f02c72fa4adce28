"""Self-attention, with what it keeps of the tokens that came before, and rotary positions.

Legend: B batch, T tokens, P tokens of the past, D width, H heads, K width of a head.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from models.norm import rms_norm
from solvers.torch_internals import transforms_in_force


class Slots:
    """Memory for keys and values, which pasts share as long as each continues the last one.

    Attributes:
        keys: Shape (B, H, C, K), C tokens in all.
        values: Likewise.
        turns: Of the C positions, for sequences without padding; see `turns_at`.
        last: Keys and values of the tokens so far, of the past to continue; what is behind is free.
    """

    def __init__(self, past: "Past", count: int, like: "Slots | None"):
        B, H, known, K = past.keys.shape
        least, before = known + count, past.slots if like is None else like
        if before is not None and before.keys.shape[2] >= least:
            capacity, self.turns = before.keys.shape[2], before.turns
        else:  # half as much again, so that copies are rare
            capacity = least + least // 2
            self.turns = turns_at(torch.arange(capacity, device=past.keys.device)[None], past.keys)
        shape = B, H, capacity, K
        self.keys, self.values = past.keys.new_empty(shape), past.values.new_empty(shape)
        self.keys[:, :, :known] = past.keys
        self.values[:, :, :known] = past.values
        self.last = past.keys, past.values

    def fit(self, past: "Past", count: int) -> bool:
        """Whether `count` tokens more can be written behind those of `past`."""
        # Otherwise another past, continued from the same one, has written there; or its rows
        # were chosen from those that are here, as beams are.
        free = past.keys is self.last[0] and past.values is self.last[1]
        free = free and past.keys.shape[2] + count <= self.keys.shape[2]
        return free and (torch.is_inference_mode_enabled() or not self.keys.is_inference())

    def show(self, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `count` tokens, to be continued next."""
        self.last = self.keys.narrow(2, 0, count), self.values.narrow(2, 0, count)
        return self.last


class Past(NamedTuple):
    """Keys and values of tokens that came before, and which of them are no padding.

    Shapes (B, H, P, K), likewise, and (B, P), bool; `valid` is None where none is padding. The
    last `room` of the P are unset: new tokens are written there instead of appended. `turns` are
    theirs, see `turns_at`, and `mask`, shape (B, 1, room, P), is what each of them may see (None:
    all). `slots` is the memory of keys and values, with more behind them.
    """

    keys: Tensor
    values: Tensor
    valid: Tensor | None = None
    room: int = 0
    turns: tuple[Tensor, Tensor] | None = None
    mask: Tensor | None = None
    slots: Slots | None = None

    def with_room(self, count: int, like: "Past | None" = None) -> "Past":
        """This past and room for so many tokens, which many calls may fill in turn.

        Not under grad mode, which may need what is overwritten.

        Args:
            count: So many.
            like: What this gave for another block of the stack, whose tokens are the same.
        """
        B, _, known, _ = self.keys.shape
        slots, whole = self.slots, known + count
        if slots is None or not slots.fit(self, count):
            slots = Slots(self, count, None if like is None else like.slots)
        keys, values = slots.show(whole)
        if like is not None:
            return Past(keys, values, like.valid, count, like.turns, like.mask, slots)
        valid = self.valid
        if valid is None:
            cos, sin = (part.narrow(2, known, count) for part in slots.turns)
        else:
            valid, position = self.with_new(count)
            cos, sin = turns_at(position, slots.keys)
        mask = visible(known, count, valid, keys)
        # A row for each sequence: sequences that are solved leave the batch.
        turns = cos.expand(B, -1, -1, -1), sin.expand(B, -1, -1, -1)
        mask = None if mask is None else mask.expand(B, -1, -1, -1)
        return Past(keys, values, valid, count, turns, mask, slots)

    def followed_by(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> "Past":
        """With new tokens at the end, or in the room for them."""
        known = self.keys.shape[2] - self.room
        # Neither a transform, nor what autograd records, as where a solver takes a derivative, may
        # write to outer tensors.
        if not self.room or transforms_in_force() or torch.is_grad_enabled():
            pairs = (self.keys, keys), (self.values, values)
            whole = [torch.cat((old.narrow(2, 0, known), new), 2) for old, new in pairs]
            return Past(whole[0], whole[1], valid)
        self.keys.narrow(2, known, self.room).copy_(keys)
        self.values.narrow(2, known, self.room).copy_(values)
        return self.filled()

    def filled(self) -> "Past":
        """The past whose room this was, once the last of the calls has filled it."""
        return Past(self.keys, self.values, self.valid, slots=self.slots)

    def with_new(self, num_new: int) -> tuple[Bool[Tensor, "B P+T"] | None, Int[Tensor, "B T"]]:
        """What tells tokens from padding once T = `num_new` have come, and their positions.

        Padding has no position, and gets 0. Where none is padding, one row of positions holds
        for all sequences.
        """
        known, valid = self.keys.shape[2], self.valid
        if valid is None:
            return None, torch.arange(known, known + num_new, device=self.keys.device)[None]
        if valid.shape[1] == known:
            valid = F.pad(valid, (0, num_new), value=True)
        return valid, (valid.cumsum(1) - 1).clamp(min=0)[:, known:]

    @classmethod
    def before(cls, valid: Bool[Tensor, "B T"], like: Tensor, heads: int, each: int) -> "Past":
        """Nothing yet; `valid` tells which tokens of the prompt to come are no padding."""
        none = like.detach().new_empty(len(valid), heads, 0, each)
        return cls(none, none, None if bool(valid.all()) else valid)


class SelfAttention(nn.Module):
    """Multi-head attention, bidirectional or causal, with optional masks and rotary positions.

    Args:
        width: D.
        num_heads: H; divides D.
        mask: Shape (H, T, T), bool: which keys (last) each query may see. None: all.
        rotary: Rotate queries and keys by their position in the sequence.
        causal: A token sees itself and what came before.
        qk_norm: Normalise queries and keys, so that no score exceeds sqrt(K).

    Raises:
        ValueError: `num_heads` does not divide `width`, or leaves an odd head for rotary.

    References:
        A. Vaswani et al., Attention Is All You Need, NeurIPS 2017. J. Su et al., RoFormer,
        2021, arXiv:2104.09864 (rotary positions). M. Dehghani et al., ICML 2023,
        arXiv:2302.05442 (norms of queries and keys).
    """

    mask: Tensor | None

    def __init__(
        self,
        width: int,
        num_heads: int,
        mask: Tensor | None = None,
        rotary: bool = False,
        causal: bool = False,
        qk_norm: bool = False,
    ):
        super().__init__()
        head_width(width, num_heads, even=rotary)
        self.num_heads, self.rotary, self.causal, self.qk_norm = num_heads, rotary, causal, qk_norm
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, h_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Attend within each sequence."""
        q_BHTK, k_BHTK, v_BHTK = self._project(h_BTD, None)
        return self._attend(q_BHTK, k_BHTK, v_BHTK, self.mask, self.causal)

    def extend(
        self, h_BTD: Float[Tensor, "B T D"], past: Past | None
    ) -> tuple[Float[Tensor, "B T D"], Past]:
        """Attend from new tokens to `past` and to each other, causally.

        Args:
            h_BTD: The new tokens.
            past: Those before. Its `valid` may be T longer than its keys: it then says which
                of the new tokens are padding as well. None: none came before.

        Returns:
            The output, and the past of the tokens to come.
        """
        q, longer, mask, causal = self._look_back(h_BTD, past)
        return self._attend(q, longer.keys, longer.values, mask, causal), longer

    def remember(self, h_BTD: Float[Tensor, "B T D"], past: Past | None) -> Past:
        """The past of the tokens to come, as from `extend`, without the output."""
        return self._look_back(h_BTD, past)[1]

    def _look_back(
        self, h_BTD: Tensor, past: Past | None
    ) -> tuple[Tensor, Past, Tensor | None, bool]:
        """Queries, the longer past, which of it each query may see, and whether that is causal."""
        if past is None:
            q, k, v = self._project(h_BTD, None)
            return q, Past(k, v), None, True
        T = h_BTD.shape[1]
        valid, turns, mask = past.valid, past.turns, past.mask
        if turns is None:
            valid, position = past.with_new(T)
            turns = turns_at(position, past.keys)
            mask = visible(past.keys.shape[2], T, valid, past.keys)
        q, k, v = self._project(h_BTD, turns)
        return q, past.followed_by(k, v, valid), mask, False

    def empty_past(self, valid: Bool[Tensor, "B T"]) -> Past:
        """Nothing yet; `valid` tells which tokens of the prompt to come are no padding."""
        weight = self.out.weight
        return Past.before(valid, weight, self.num_heads, len(weight) // self.num_heads)

    def _project(
        self, h_BTD: Tensor, turns: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, shapes (B, H, T, K)."""
        qkv = self.qkv(h_BTD).unflatten(-1, (3, self.num_heads, -1))
        qk, v = qkv.narrow(2, 0, 2), qkv.select(2, 2)
        if self.qk_norm:
            qk = rms_norm(qk)
        qk = qk.permute(2, 0, 3, 1, 4)
        if self.rotary:
            qk = rotate(qk, turns)
        q, k = qk.unbind()
        return q, k, v.transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


def visible(
    known: int, count: int, valid: Bool[Tensor, "B P+T"] | None, like: Tensor
) -> Bool[Tensor, "B 1 T P+T"] | None:
    """What T = `count` new tokens may see of P = `known` before them and of themselves.

    None where that is all. One row holds for all sequences where none has padding.
    """
    if valid is None and count == 1:
        return None
    order = torch.arange(known + count, device=like.device)
    mask = (order <= order[known:, None])[None, None]
    if valid is None:
        return mask
    # Padding attends to itself, so that no row of the softmax is empty.
    return valid[:, None, None] & mask | (order == order[known:, None])


def head_width(width: int, num_heads: int, even: bool) -> int:
    """K, which must be whole, and for rotary positions even.

    Raises:
        ValueError: It is not.
    """
    if width % num_heads or (even and (width // num_heads) % 2):
        raise ValueError(
            f"`num_heads` must divide the width into {'even ' if even else ''}parts: got "
            f"{num_heads} heads for width {width}."
        )
    return width // num_heads


def rotate(x: Tensor, turns: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Turn each pair of dims of a token by an angle that grows with its position.

    Args:
        x: Shape (..., B, H, T, K).
        turns: See `turns_at`; by default tokens are counted from 0.
    """
    if turns is None:
        turns = turns_at(torch.arange(x.shape[-2], device=x.device)[None], x)
    cos, sin = turns
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def turns_at(position: Int[Tensor, "B T"], like: Tensor) -> tuple[Tensor, Tensor]:
    """What `rotate` multiplies each dim and its partner by, shapes (B, 1, T, K).

    The partner of dim i is i + K / 2, and the angle of both position * 10000^(-2 i / K). The
    first are its cosines; the second its sines, negative for the first half of the dims.

    Args:
        position: Of tokens; one row may do for all sequences.
        like: A tensor whose dtype they take, and whose last dim is K.
    """
    pairs = like.shape[-1] // 2
    rates = 10_000.0 ** (-torch.arange(pairs, device=like.device) / pairs)
    angle = position[:, None, :, None] * rates
    cos, sin = angle.cos().to(like.dtype), angle.sin().to(like.dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
