"""The block family that backbones and refiners share: a mixer, an MLP, two norms.

Legend: B batch, T tokens, D width, U units (such as the 27 rows, columns and boxes of a Sudoku),
S symbols, M mixing width.
"""

import math
from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.norms import is_plain, rms_norm


class Recomputable(nn.Module):
    """A network that can drop its activations in the forward pass and recompute them."""

    @property
    @abstractmethod
    def recomputes(self) -> bool:
        """Whether it recomputes its activations."""

    @abstractmethod
    def recompute_activations(self) -> None:
        """Recompute activations from now on."""


class RecomputableBlock(Recomputable):
    """A block with a flag for recomputation.

    The flag is read within `forward`, so that `compile` can fuse the block, and hooks, such as
    FSDP's, run once.

    Attributes:
        recompute: Recompute the activations; see `models.recompute_activations`.
    """

    recompute = False

    @property
    def recomputes(self) -> bool:
        """See `Recomputable`."""
        return self.recompute

    def recompute_activations(self) -> None:
        """See `Recomputable`."""
        self.recompute = True

    @abstractmethod
    def apply_once(self, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the block; input and output have the same shape."""

    def forward(self, h: Tensor, *args: Any) -> Tensor:
        """Shape (..., D) in and out; `args` are those of the block's `apply_once`."""
        if self.recompute and torch.is_grad_enabled():
            out = checkpoint(self.apply_once, h, *args, use_reentrant=False)
            assert isinstance(out, Tensor)
            return out
        return self.apply_once(h, *args)


class LoopedModel(nn.Module):
    """A model that applies a part of it several times in a pass, without a solver."""

    @property
    @abstractmethod
    def looped(self) -> nn.Module:
        """The part that is applied several times."""


class Block(RecomputableBlock):
    """Post-norm residual block: h <- norm(h + mixer(h)), then h <- norm(h + mlp(h)).

    A norm after each sum keeps the state bounded however often the block is applied, which
    a fixed point needs; with a norm before it, the state can grow without limit.

    Args:
        mixer: Exchanges information between tokens; keeps the shape.
        width: D.
        expansion: Hidden width of the SwiGLU MLP over D.
        norms: Those after the mixer and after the MLP; by default RMS norms with learned gains.

    References:
        N. Shazeer, GLU Variants Improve Transformer, 2020, arXiv:2002.05202 (SwiGLU).
        B. Zhang, R. Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019.
    """

    def __init__(
        self,
        mixer: nn.Module,
        width: int,
        expansion: float = 2.0,
        norms: tuple[nn.Module, nn.Module] | None = None,
    ):
        super().__init__()
        self.mixer = mixer
        self.mlp = SwiGLU(width, round(expansion * width))
        self.mixer_norm, self.mlp_norm = norms or (RMSNorm(width), RMSNorm(width))

    def apply_once(self, h: Tensor) -> Tensor:
        """Shape (..., D) in and out."""
        h = self.mixer_norm(h + self.mixer(h))
        return self.mlp_norm(h + self.mlp(h))


class SwiGLU(nn.Module):
    """Gated MLP, out(silu(a) * b) with (a, b) = in(h)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.into = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Shape (..., D) in and out."""
        # Two products, since halves of one would be strided, and their gradients copied together.
        to_a, to_b = self.into.weight.chunk(2)
        return self.out(F.silu(F.linear(h, to_a)) * F.linear(h, to_b))


class PreNormBlock(RecomputableBlock):
    """Pre-norm residual block: h <- h + gate * mixer(norm(h)), then h <- h + gate * mlp(norm(h)).

    Args:
        mixer: Exchanges information between tokens, causally. It has the methods `extend` and
            `empty_cache` of `SelfAttention`, and `remember` if that of the block is called.
        width: D.
        expansion: Hidden width of the squared-ReLU MLP over D.
        gate: Upper bound of a learned factor per channel on both branches; None leaves the
            factor out.
        gate_start: Where that factor starts; by default at half of the bound. At the bound itself
            the gates hardly move, as their sigmoid is flat there.
        norm_eps: Of both norms; see `RMSNorm`.

    References:
        D. So et al., Primer, NeurIPS 2021, arXiv:2109.08668 (squared ReLU). The bounded gate
        is that of Attractor Models, arXiv:2605.12466.
    """

    def __init__(
        self,
        mixer: nn.Module,
        width: int,
        expansion: float = 4.0,
        gate: float | None = None,
        gate_start: float | None = None,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.mixer: Any = mixer
        self.mlp = SquaredReLU(width, round(expansion * width))
        self.mixer_norm = RMSNorm(width, norm_eps)
        self.mlp_norm = RMSNorm(width, norm_eps)
        self.gate = gate
        self.raw_gates = None
        if gate is not None:
            share = 0.5 if gate_start is None else gate_start / gate
            share = min(max(share, 1e-6), 1 - 1e-6)  # whose logits are finite
            raw = math.log(share / (1 - share))
            self.raw_gates = nn.Parameter(torch.full((2, width), raw))

    def apply_once(self, h: Tensor, *value: Tensor) -> Tensor:
        """Shape (B, T, D) in and out; for `value` see `SelfAttention.extend`."""
        return self.extend(h, None, *value)[0]

    def extend(self, h_BTD: Tensor, past: Any, *value: Tensor) -> tuple[Tensor, Any]:
        """Like `forward`, for tokens that follow those of `past`; see `SelfAttention.extend`."""
        mixed, past = self.mixer.extend(self.mixer_norm(h_BTD), past, *value)
        h_BTD = self._plus(0, h_BTD, mixed)
        return self._plus(1, h_BTD, self.mlp(self.mlp_norm(h_BTD))), past

    def remember(self, h_BTD: Tensor, past: Any) -> Any:
        """Return the cache that `extend` returns, without the block's output."""
        return self.mixer.remember(self.mixer_norm(h_BTD), past)

    def _plus(self, branch: int, h_BTD: Tensor, change: Tensor) -> Tensor:
        """Add what a branch has computed to the state, times its gate."""
        if self.raw_gates is None or self.gate is None:
            return h_BTD + change
        return torch.addcmul(h_BTD, self.raw_gates[branch].sigmoid(), change, value=self.gate)


class SquaredReLU(nn.Module):
    """An MLP with squared ReLU: out(relu(in(h))^2)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.into = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Shape (..., D) in and out."""
        h = self.into(h)
        if torch.is_grad_enabled() and is_plain(h):
            return self.out(_SquaredPositive.apply(h))
        h = F.relu(h)
        return self.out(h * h)  # faster than `square` for a single token on the CPU


class _SquaredPositive(torch.autograd.Function):
    """relu(x)^2, whose gradient is 2 relu(x) v: two passes over memory, where autograd takes four.

    The backward pass consists of operations that can be differentiated in turn.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        positive = F.relu(x)
        return positive.mul_(positive)

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.addcmul(x.new_zeros(()), v[0], F.relu(x), value=2)


class Convolution(nn.Module):
    """A 3 x 3 convolution over the square that the tokens form, with zeros around it.

    Its weight is kept as a matrix, from the 9 D numbers under the filter to D, so that an
    optimiser of matrices such as Muon takes it for one.

    Args:
        width: D.
        side: T is side * side.
    """

    def __init__(self, width: int, side: int):
        super().__init__()
        self.side = side
        self.weight = nn.Parameter(torch.empty(width, width * 9))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Conv2d

    def forward(self, h_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Convolve; shape (B, T, D) in and out."""
        # Tokens with their channels last are an image in the channels-last format already.
        image_BDSS = h_BTD.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        filters = self.weight.unflatten(1, (-1, 3, 3))
        return F.conv2d(image_BDSS, filters, padding=1).permute(0, 2, 3, 1).flatten(1, 2)


class TokenMixer(nn.Module):
    """An MLP across tokens, the same for every channel, in place of attention.

    Args:
        num_tokens: T, the same for every input.
        expansion: Hidden width over T.

    References:
        I. Tolstikhin et al., MLP-Mixer, NeurIPS 2021, arXiv:2105.01601; with SwiGLU as in
        A. Jolicoeur-Martineau, Less is More: Recursive Reasoning with Tiny Networks,
        arXiv:2510.04871, sec. 4.5.
    """

    def __init__(self, num_tokens: int, expansion: float = 8 / 3):
        super().__init__()
        self.mlp = SwiGLU(num_tokens, round(expansion * num_tokens))

    def forward(self, h_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Mix tokens; shape (B, T, D) in and out."""
        return self.mlp(h_BTD.transpose(1, 2)).transpose(1, 2)


class UnitAttention(nn.Module):
    """Attention within units (rows, columns, boxes) by one learned weight per key and channel.

    For every unit u and channel m, over its members j,

        p_um = sum_j w_jm v_jm / sum_j w_jm,    w = exp(score), v = value

    and a member receives the sum, over the kinds of unit it belongs to, of a linear map of
    p. The weight depends on the key only, so a unit costs its size, not its square. Tokens
    are the pairs of a cell and a symbol; besides the given units, the symbols of one cell
    form a unit too. Weights are shared by all cells and symbols, so the layer commutes with
    every permutation of the cells that keeps units of each kind together, and with every
    renaming of the symbols. (Not with a transposition: rows and columns have own weights.)

    Args:
        width: D.
        units: Shape (kinds, T), int: the unit of each kind that a cell belongs to.

    References:
        S. Zhai et al., An Attention Free Transformer, 2021, arXiv:2105.14103, sec. 3 (AFT-
        simple; here within units, and without its query gate).
    """

    limit = 5.0
    member_UT: Tensor

    def __init__(self, width: int, units: Int[Tensor, "kinds T"]):
        super().__init__()
        self.kinds = len(units)
        self.into = nn.Linear(width, 2 * width, bias=False)
        scale = 1 / math.sqrt(width * (self.kinds + 1))
        self.out = nn.Parameter(torch.randn(self.kinds + 1, width, width) * scale)
        member_UT = torch.cat([F.one_hot(kind).T for kind in units]).float()
        self.register_buffer("member_UT", member_UT, persistent=False)

    def forward(self, h_BTSD: Float[Tensor, "B T S D"]) -> Float[Tensor, "B T S D"]:
        """Attend within units; shape (B, T, S, D) in and out."""
        B, T, S, D = h_BTSD.shape
        to_score, to_value = self.into.weight.chunk(2)
        score = F.linear(h_BTSD, to_score)
        # A soft limit, limit * tanh(score / limit), keeps the exponential, and hence the map, from
        # running away. As a sigmoid, whose kernels on a CPU take a quarter of the time of tanh's;
        # in float32 at least, since small scores are differences of larger numbers.
        wide = score.to(torch.promote_types(score.dtype, torch.float32))
        limited = torch.sigmoid(wide * (2 / self.limit)) * (2 * self.limit) - self.limit
        weight = torch.exp(limited).to(score.dtype)
        weighted = weight * F.linear(h_BTSD, to_value)
        pooled = self._over_units(weighted) / self._over_units(weight)
        sent = (pooled @ self.out[:-1]).reshape(B, -1, S * D)
        received = (self.member_UT.transpose(0, 1) @ sent).view(B, T, S, D)
        own = weighted.sum(2, keepdim=True) / weight.sum(2, keepdim=True)
        return received + own @ self.out[-1]

    def _over_units(self, h_BTSD: Tensor) -> Float[Tensor, "B kinds units*S D"]:
        """Sum over the members of each unit."""
        B, _, _, D = h_BTSD.shape
        return (self.member_UT @ h_BTSD.flatten(2)).view(B, self.kinds, -1, D)


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` over the last dim of a width; see `rms_norm` for the epsilon."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., D) in and out."""
        return rms_norm(x, self.weight, self.eps)


class PlainNorm(nn.Module):
    """RMS norm over one dim without learned gains, which a strong weight decay would take away.

    Args:
        dim: Over which it goes: the last for channels, the last but one for tokens.

    References:
        The blocks of TRM, HRM and EqR; TRM's mixer normalises over tokens (arXiv:2510.04871).
    """

    eps = 1e-5

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., T, D) in and out."""
        if self.dim == -1:
            return rms_norm(x, eps=self.eps)
        return rms_norm(x.transpose(self.dim, -1), eps=self.eps).transpose(self.dim, -1)
