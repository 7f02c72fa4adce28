"""Self-attention with a cache of keys and values, and rotary positions.

Legend: B batch, T tokens, P tokens of the past, C capacity of a buffer, D width, H heads, K width
of a head.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from models.norms import is_plain, kept, rms_norm
from solvers.torch_internals import transforms_in_force

# As in the paper that brought rotary positions.
ROTARY_BASE = 10_000.0
# So many dims of a token decide how much of its value embedding is added.
GATE_DIMS = 32


class KVBuffer:
    """Memory for keys and values, shared by caches as long as each continues the last one.

    Attributes:
        keys: Shape (B, H, C, K).
        values: Shape (B, H, C, K).
        rotary: The factors of all C positions, for sequences without padding; see `rotary_at`.
        last: Keys and values of the cache that may be continued; what lies behind them is free.
    """

    def __init__(self, cache: "KVCache", count: int, like: "KVBuffer | None"):
        B, H, known, K = cache.keys.shape
        least, before = known + count, cache.buffer if like is None else like
        if before is not None and before.keys.shape[2] >= least:
            capacity, self.rotary = before.keys.shape[2], before.rotary
        else:  # half as much again, so that copies are rare
            capacity = least + least // 2
            positions = torch.arange(capacity, device=cache.keys.device)[None]
            self.rotary = rotary_at(positions, cache.keys, cache.base)
        shape = B, H, capacity, K
        self.keys, self.values = cache.keys.new_empty(shape), cache.values.new_empty(shape)
        self.keys[:, :, :known] = cache.keys
        self.values[:, :, :known] = cache.values
        self.last = cache.keys, cache.values

    def fits(self, cache: "KVCache", count: int) -> bool:
        """Whether `count` tokens more can be written behind those of `cache`."""
        # They cannot where another cache, continued from the same one, has written there, or
        # where the rows of this cache were selected from those of the buffer, as beams are.
        free = cache.keys is self.last[0] and cache.values is self.last[1]
        free = free and cache.keys.shape[2] + count <= self.keys.shape[2]
        return free and (torch.is_inference_mode_enabled() or not self.keys.is_inference())

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """Return views of the first `count` keys and values, which may be continued from now on."""
        self.last = self.keys.narrow(2, 0, count), self.values.narrow(2, 0, count)
        return self.last


class KVCache(NamedTuple):
    """Keys and values of the tokens that came before.

    Attributes:
        keys: Shape (B, H, P, K).
        values: Shape (B, H, P, K).
        valid: Shape (B, P), bool: which tokens are no padding. None: all of them.
        reserved: Number of tokens at the end of the P that are not set yet: new tokens are written
            there instead of appended.
        rotary: Rotary factors of the reserved positions; see `rotary_at`.
        mask: Shape (B, 1, reserved, P), bool: what each of the reserved tokens may see. None: all.
        buffer: The memory that keys and values are views of, with space behind them.
        base: Of the rotary positions; see `rotary_at`.
    """

    keys: Tensor
    values: Tensor
    valid: Tensor | None = None
    reserved: int = 0
    rotary: tuple[Tensor, Tensor] | None = None
    mask: Tensor | None = None
    buffer: KVBuffer | None = None
    base: float = ROTARY_BASE

    # For the solvers: a map that has it among its args may write into its reserved tokens.
    scratch = True

    def reserve(self, count: int, like: "KVCache | None" = None) -> "KVCache":
        """Reserve space for new tokens, which many calls may fill, one after the other.

        Not under grad mode, which may need what is overwritten.

        Args:
            count: The number of new tokens.
            like: What this method gave for another block, whose tokens are the same.
        """
        B, _, known, _ = self.keys.shape
        buffer, whole = self.buffer, known + count
        if buffer is None or not buffer.fits(self, count):
            buffer = KVBuffer(self, count, None if like is None else like.buffer)
        keys, values = buffer.first(whole)
        if like is not None:
            return like._replace(keys=keys, values=values, buffer=buffer)
        valid = self.valid
        if valid is None:
            cos, sin = (part.narrow(1, known, count) for part in buffer.rotary)
        else:
            valid, position = self.positions_of_next(count)
            cos, sin = rotary_at(position, buffer.keys, self.base)
        mask = visible(known, count, valid, keys)
        # A row for each sequence, since sequences whose solve has ended leave the batch.
        rotary = cos.expand(B, *cos.shape[1:]), sin.expand(B, *sin.shape[1:])
        mask = None if mask is None else mask.expand(B, -1, -1, -1)
        return KVCache(keys, values, valid, count, rotary, mask, buffer, self.base)

    def append(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> "KVCache":
        """Return the cache with new tokens at the end, or in the space reserved for them."""
        known = self.keys.shape[2] - self.reserved
        # Tensors from outside may be written to neither by a transform nor in grad mode, as where
        # a solver takes a derivative.
        if not self.reserved or transforms_in_force() or torch.is_grad_enabled():
            pairs = (self.keys, keys), (self.values, values)
            whole = [torch.cat((old.narrow(2, 0, known), new), 2) for old, new in pairs]
            return KVCache(whole[0], whole[1], valid, base=self.base)
        self.keys.narrow(2, known, self.reserved).copy_(keys)
        self.values.narrow(2, known, self.reserved).copy_(values)
        return self.filled()

    def filled(self) -> "KVCache":
        """The same cache once the reserved tokens are final: they count as tokens of the past."""
        return KVCache(self.keys, self.values, self.valid, buffer=self.buffer, base=self.base)

    def select(self, rows: Int[Tensor, " N"]) -> "KVCache":
        """Return the cache of these sequences, of which one may be chosen more than once."""
        valid = None if self.valid is None else self.valid[rows]
        keys, values = self.keys[rows], self.values[rows]
        return KVCache(keys, values, valid, buffer=self.buffer, base=self.base)

    def positions_of_next(
        self, count: int
    ) -> tuple[Bool[Tensor, "B P+T"] | None, Int[Tensor, "B T"]]:
        """Return `valid` as it is once T = `count` tokens have come, and their positions.

        Padding has no position, and gets 0. Where none is padding, one row of positions holds
        for all sequences.
        """
        known, valid = self.keys.shape[2], self.valid
        if valid is None:
            return None, torch.arange(known, known + count, device=self.keys.device)[None]
        if valid.shape[1] == known:
            valid = F.pad(valid, (0, count), value=True)
        return valid, (valid.cumsum(1) - 1).clamp(min=0)[:, known:]

    @classmethod
    def empty(
        cls,
        valid: Bool[Tensor, "B T"],
        like: Tensor,
        heads: int,
        width: int,
        base: float = ROTARY_BASE,
    ) -> "KVCache":
        """The cache before a prompt, of which `valid` tells tokens from padding."""
        none = like.detach().new_empty(len(valid), heads, 0, width)
        return cls(none, none, None if bool(valid.all()) else valid, base=base)


class SelfAttention(nn.Module):
    """Multi-head attention, bidirectional or causal, with optional masks and rotary positions.

    Args:
        width: D.
        num_heads: H; divides D.
        mask: Shape (H, T, T), bool: which keys (last) each query may see. None: all.
        rotary: Rotate queries and keys by their position in the sequence.
        causal: A token sees itself and what came before.
        qk_norm: Normalise queries and keys, so that no score exceeds sqrt(K).
        base: Of the rotary positions, which turn more slowly the larger it is; see `rotary_at`.
        value_embeddings: Take embeddings of the tokens, and add them to the values of each head
            times a factor from 0 to 2, which a map of the first 32 dims of a token decides.

    Raises:
        ValueError: `num_heads` does not divide `width`, or leaves an odd head for rotary.

    References:
        A. Vaswani et al., Attention Is All You Need, NeurIPS 2017. J. Su et al., RoFormer,
        2021, arXiv:2104.09864 (rotary positions). M. Dehghani et al., ICML 2023,
        arXiv:2302.05442 (norms of queries and keys). Z. Zhou et al., Value Residual Learning,
        arXiv:2410.17897 (values that skip layers); the gate is that of the public code of
        arXiv:2604.12946.
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
        base: float = ROTARY_BASE,
        value_embeddings: bool = False,
    ):
        super().__init__()
        head_width(width, num_heads, even=rotary)
        self.num_heads, self.rotary, self.causal, self.qk_norm = num_heads, rotary, causal, qk_norm
        self.base = base
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.value_gate = None
        if value_embeddings:
            self.value_gate = nn.Linear(min(GATE_DIMS, width), num_heads, bias=False)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, h_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Attend within each sequence; shape (B, T, D) in and out."""
        q_BHTK, k_BHTK, v_BHTK = self._project(h_BTD, None)
        return self._attend(q_BHTK, k_BHTK, v_BHTK, self.mask, self.causal)

    def extend(
        self,
        h_BTD: Float[Tensor, "B T D"],
        past: KVCache | None,
        value_BTD: Float[Tensor, "B T D"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], KVCache]:
        """Attend from new tokens to `past` and to each other, causally.

        Args:
            h_BTD: The new tokens.
            past: The cache of those before. Its `valid` may be T longer than its keys: it then
                says which of the new tokens are padding as well. None: no token came before.
            value_BTD: With `value_embeddings`, those of the new tokens.

        Returns:
            The output, and the cache for the tokens to come.
        """
        q, longer, mask, causal = self._look_back(h_BTD, past, value_BTD)
        return self._attend(q, longer.keys, longer.values, mask, causal), longer

    def remember(self, h_BTD: Float[Tensor, "B T D"], past: KVCache | None) -> KVCache:
        """Return the cache for the tokens to come, as `extend` does, without the output."""
        return self._look_back(h_BTD, past)[1]

    def _look_back(
        self, h_BTD: Tensor, past: KVCache | None, value_BTD: Tensor | None = None
    ) -> tuple[Tensor, KVCache, Tensor | None, bool]:
        """Queries, the longer cache, the mask, and whether to use the causal one instead."""
        if past is None:
            q, k, v = self._project(h_BTD, None, value_BTD)
            return q, KVCache(k, v, base=self.base), None, True
        T = h_BTD.shape[1]
        valid, rotary, mask = past.valid, past.rotary, past.mask
        if rotary is None:
            valid, position = past.positions_of_next(T)
            rotary = rotary_at(position, past.keys, self.base)
            mask = visible(past.keys.shape[2], T, valid, past.keys)
        q, k, v = self._project(h_BTD, rotary, value_BTD)
        return q, past.append(k, v, valid), mask, False

    def empty_cache(self, valid: Bool[Tensor, "B T"]) -> KVCache:
        """The cache before a prompt, of which `valid` tells tokens from padding."""
        weight = self.out.weight
        width = len(weight) // self.num_heads
        return KVCache.empty(valid, weight, self.num_heads, width, self.base)

    def _project(
        self,
        h_BTD: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        value_BTD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, shapes (B, H, T, K)."""
        qkv = self.qkv(h_BTD).unflatten(-1, (3, self.num_heads, -1))
        qk, v = qkv.split_with_sizes((2, 1), 2)
        v = v.squeeze(2)
        if self.value_gate is not None and value_BTD is not None:
            gate = 2 * self.value_gate(h_BTD[..., : self.value_gate.in_features]).sigmoid()
            value = value_BTD.to(v.dtype).unflatten(-1, (self.num_heads, -1))
            v = torch.addcmul(v, gate[..., None], value)
        if self.qk_norm:
            qk = rms_norm(qk)
        if self.rotary:
            cos, sin = from_start(h_BTD.shape[1], qkv, self.base) if rotary is None else rotary
            qk = rotated(qk, cos, sin)
        q, k = qk.unbind(2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


def visible(
    known: int, count: int, valid: Bool[Tensor, "B P+T"] | None, like: Tensor
) -> Bool[Tensor, "B 1 T P+T"] | None:
    """The mask of what T = `count` new tokens may see of P = `known` before them and of themselves.

    None where they see all. One row holds for all sequences where none has padding.
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
    """The width K of a head.

    Raises:
        ValueError: `num_heads` does not divide `width`, or K is odd where it has to be `even`.
    """
    if width % num_heads or (even and (width // num_heads) % 2):
        raise ValueError(
            f"`num_heads` must divide the width into {'even ' if even else ''}parts: got "
            f"{num_heads} heads for width {width}."
        )
    return width // num_heads


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of dims of a token by an angle that grows with its position.

    Args:
        x: Shape (B, T, ..., H, K), with as many dims as the factors.
        cos: See `rotary_at`.
        sin: See `rotary_at`.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def from_start(length: int, like: Tensor, base: float) -> tuple[Tensor, Tensor]:
    """The factors of the positions from 0 to `length` - 1; see `rotary_at`."""
    key = like.shape[-1], like.dtype, like.device, base, torch.get_default_dtype()
    if type(like) is not Tensor or not is_plain(like):
        return _from_start(length, *key)
    # Of a power of two, so that sequences of many lengths take their factors from few tensors.
    longest = 1 << max(length - 1, 0).bit_length()
    cos, sin = kept(_from_start, longest, *key)
    return (cos, sin) if longest == length else (cos.narrow(1, 0, length), sin.narrow(1, 0, length))


def _from_start(
    length: int, width: int, dtype: torch.dtype, device: torch.device, base: float, _: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same for heads of a width; angles are computed in the default dtype, the last one."""
    position = torch.arange(length, device=device)[None]
    return rotary_at(position, torch.empty(width, dtype=dtype, device=device), base)


def rotary_at(
    position: Int[Tensor, "B T"], like: Tensor, base: float = ROTARY_BASE
) -> tuple[Tensor, Tensor]:
    """The factors by which `rotated` multiplies each dim and its partner, shapes (B, T, 1, 1, K).

    The partner of dim i is i + K / 2, and the angle of both is position * base^(-2 i / K). The
    first tensor holds the cosines; the second the sines, negative for the first half of the dims.

    Args:
        position: The positions of the tokens; one row may do for all sequences.
        like: A tensor whose dtype the factors take, and whose last dim is K.
        base: Of the angles, the same for all blocks of a model, which share the factors.
    """
    pairs = like.shape[-1] // 2
    rates = base ** (-torch.arange(pairs, device=like.device) / pairs)
    angle = position[:, :, None, None, None] * rates
    cos, sin = angle.cos().to(like.dtype), angle.sin().to(like.dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
