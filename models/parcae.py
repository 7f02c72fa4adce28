"""Parcae, a language model that loops h <- blocks(A h + B e) a given number of times.

Legend: B batch, T tokens, V vocabulary, D width.
"""

import math
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import LoopedModel, RMSNorm
from models.language import Cache, LanguageOutput, LanguageSpec, Vocabulary
from models.released import released_matrix_, released_state
from models.stack import Values

Recurrence = Literal["plain", "released"]


class ParcaeLM(LoopedModel):
    """A looped model: prelude e = P(x), then h <- blocks(A h + B e) several times, then a coda.

    A is diagonal with entries below 1, so that the injection alone is stable. In training each
    sequence draws its number of loops from a Poisson distribution, and only the last loops are
    recorded.

    Args:
        spec: The shape.
        loops: Mean number of loops in training, and their number otherwise.
        recorded: How many loops, the last ones, are recorded.
        coda: How many of the backbone's blocks come after the loop, at most all of them.
        recurrence: "plain": A = exp(-softplus(rate)), a diagonal B, from zeros. "released": as in
            the public code, with what `ReleasedRecurrence` says.

    Raises:
        ValueError: Unknown `recurrence`.

    References:
        Parcae, arXiv:2604.12946.
    """

    solving: None = None

    def __init__(
        self,
        spec: LanguageSpec,
        loops: int = 8,
        recorded: int = 4,
        coda: int = 1,
        recurrence: Recurrence = "plain",
    ):
        super().__init__()
        if recurrence not in get_args(Recurrence):
            known = ", ".join(map(repr, get_args(Recurrence)))
            raise ValueError(f"`recurrence` must be one of {known}, got {recurrence!r}.")
        coda = min(coda, spec.backbone_blocks)
        sizes = spec.backbone_blocks - coda, spec.refiner_blocks, coda
        self.vocabulary = Vocabulary(spec)
        self.prelude = spec.stack(sizes[0], after=sizes[1] + coda)
        self.blocks = spec.stack(sizes[1], after=coda)
        self.coda = spec.stack(coda)
        self.values = spec.values(*sizes)
        if recurrence == "plain":
            self.rate = nn.Parameter(torch.zeros(spec.width))
            self.into = nn.Parameter(torch.ones(spec.width))
        self.released = ReleasedRecurrence(spec) if recurrence == "released" else None
        self.loops, self.recorded = loops, recorded

    @property
    def looped(self) -> nn.Module:
        """The blocks of the loop."""
        return self.blocks

    def forward(
        self, ids: Int[Tensor, "B T"], *, max_steps: int | None = None, **_: Any
    ) -> LanguageOutput:
        """Logits of every token; outside training, `max_steps` is the number of loops."""
        outer, inner, last = self.values(ids)
        e = self._entered(self.prelude(self.vocabulary(ids), *outer))
        h = self._start(e)
        most, counts = self.loops if max_steps is None else max_steps, None
        if self.training:
            counts = self._draw(len(ids)).to(e.device)
            most = int(counts.max())
        for loop in range(most):
            with torch.set_grad_enabled(torch.is_grad_enabled() and loop >= most - self.recorded):
                after = self.loop(h, e, *inner)
                # All sequences end together, so those with fewer loops begin later.
                h = after if counts is None else torch.where(loop >= most - counts, after, h)
        return self._decoded(self.coda(self._left(h), *last))

    def loop(
        self, h: Float[Tensor, "B T D"], e: Float[Tensor, "B T D"], *values: Values
    ) -> Float[Tensor, "B T D"]:
        """Run one loop, h <- blocks(A h + B e), with the value embeddings of the blocks, if any."""
        return self.blocks(self._injected(h, e), *values)

    def empty_cache(self, valid: Bool[Tensor, "B T"]) -> Cache:
        """See `LanguageModel`; the loops count as the refiner."""
        outer = self.prelude.empty_caches(valid) + self.coda.empty_caches(valid)
        return Cache(outer, self.blocks.empty_caches(valid) * self.loops)

    def extend(
        self, ids: Int[Tensor, "B T"], cache: Cache, *, max_steps: int | None = None
    ) -> tuple[LanguageOutput, Cache]:
        """See `LanguageModel`."""
        loops = self.loops if max_steps is None else max_steps
        each, before = len(self.blocks), len(self.prelude)
        outer, inner, last = self.values(ids)
        e, prelude = self.prelude.extend(self.vocabulary(ids), cache.backbone[:before], *outer)
        e = self._entered(e)
        h, past = self._start(e), list(cache.refiner)
        for loop in range(loops):
            at = slice(loop * each, (loop + 1) * each)
            h, past[at] = self.blocks.extend(self._injected(h, e), past[at], *inner)
        state, coda = self.coda.extend(self._left(h), cache.backbone[before:], *last)
        return self._decoded(state), Cache(prelude + coda, tuple(past))

    def _decoded(self, state: Tensor) -> LanguageOutput:
        return LanguageOutput(self.vocabulary.decode(state), state, None)

    def _draw(self, sequences: int) -> Tensor:
        """The number of loops of each sequence, shape (B, 1, 1)."""
        shape = sequences, 1, 1
        if self.released is not None:
            return torch.poisson(torch.full(shape, float(self.loops))).clamp(min=1)
        counts = torch.poisson(torch.full(shape, self.loops - 1.0)) + 1
        return counts.clamp(max=2 * self.loops)

    def _entered(self, e: Tensor) -> Tensor:
        return e if self.released is None else self.released.norm(e)

    def _start(self, e: Tensor) -> Tensor:
        if self.released is None or not self.training:
            return torch.zeros_like(e)
        return released_state(e)

    def _injected(self, h: Tensor, e: Tensor) -> Tensor:
        if self.released is not None:
            return self.released(h, e)
        return torch.exp(-F.softplus(self.rate)) * h + self.into * e

    def _left(self, h: Tensor) -> Tensor:
        if self.released is None:
            return h
        # In the precision of the states, which autocast would lower.
        return F.linear(h, self.released.out).to(h.dtype)


class ReleasedRecurrence(nn.Module):
    """The linear parts of the loop as in the public code of Parcae.

        e <- norm(e),    h <- exp(-dt exp(log_rate)) h + dt B e,    dt = softplus(raw_step)

    and the coda gets C h; B and C are full matrices. In training the loop starts at random; in
    evaluation at zeros, their mean, so that an answer is the same twice and needs no generator.

    Args:
        spec: The shape.

    References:
        `DiagonalInjection`, `Parcae` and `ParcaeInit` of https://github.com/sandyresearch/parcae.
    """

    def __init__(self, spec: LanguageSpec):
        super().__init__()
        self.norm = RMSNorm(spec.width, spec.norm_eps)
        # At first a loop keeps the share 1 / sqrt(5) of the state.
        step = math.log(5) / 2
        self.log_rate = nn.Parameter(torch.zeros(spec.width))
        self.raw_step = nn.Parameter(torch.full((spec.width,), math.log(math.expm1(step))))
        # Not called "weight", as optimisers take matrices of that name for those within blocks.
        self.into = nn.Parameter(torch.eye(spec.width))
        self.out = nn.Parameter(torch.empty(spec.width, spec.width))
        released_matrix_(self.out, spec.width)

    def forward(
        self, h: Float[Tensor, "B T D"], e: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B T D"]:
        """The input of the looped blocks."""
        step = F.softplus(self.raw_step)
        return h * torch.exp(-step * self.log_rate.exp()) + step * F.linear(e, self.into)
