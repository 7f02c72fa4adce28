"""Parcae, a language model that loops h <- blocks(A h + B e) a given number of times.

Legend: B batch, T tokens, V vocabulary, D width.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import LoopedModel
from models.language import Cache, LanguageOutput, LanguageSpec, Vocabulary


class ParcaeLM(LoopedModel):
    """A looped model: prelude e = P(x), then h <- blocks(A h + B e) several times, then a coda.

    A is diagonal, exp(-softplus(rate)), so that the injection alone is stable. In training
    each sequence draws its number of loops from a Poisson distribution, and only the last
    loops are recorded.

    Args:
        spec: The shape.
        loops: Mean number of loops in training, and their number otherwise.
        recorded: How many loops, the last ones, are recorded.
        coda: How many of the backbone's blocks come after the loop, at most all of them.

    References:
        Parcae, arXiv:2604.12946.
    """

    solving: None = None

    def __init__(self, spec: LanguageSpec, loops: int = 8, recorded: int = 4, coda: int = 1):
        super().__init__()
        coda = min(coda, spec.backbone_blocks)
        self.vocabulary = Vocabulary(spec)
        self.prelude = spec.stack(spec.backbone_blocks - coda)
        self.blocks = spec.stack(spec.refiner_blocks)
        self.coda = spec.stack(coda)
        self.rate = nn.Parameter(torch.zeros(spec.width))
        self.into = nn.Parameter(torch.ones(spec.width))
        self.loops, self.recorded = loops, recorded

    @property
    def looped(self) -> nn.Module:
        """The blocks of the loop."""
        return self.blocks

    def forward(
        self, ids: Int[Tensor, "B T"], *, max_steps: int | None = None, **_: Any
    ) -> LanguageOutput:
        """Logits of every token; outside training, `max_steps` is the number of loops."""
        e = self.prelude(self.vocabulary(ids))
        h = torch.zeros_like(e)
        most, counts = self.loops if max_steps is None else max_steps, None
        if self.training:
            counts = torch.poisson(torch.full((len(ids), 1, 1), self.loops - 1.0)).to(e.device) + 1
            counts = counts.clamp(max=2 * self.loops)
            most = int(counts.max())
        for loop in range(most):
            with torch.set_grad_enabled(torch.is_grad_enabled() and loop >= most - self.recorded):
                after = self.loop(h, e)
                # All sequences end together, so those with fewer loops begin later.
                h = after if counts is None else torch.where(loop >= most - counts, after, h)
        state = self.coda(h)
        return LanguageOutput(self.vocabulary.decode(state), state, None)

    def loop(self, h: Float[Tensor, "B T D"], e: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Run one loop, h <- blocks(A h + B e)."""
        return self.blocks(self._injected(h, e))

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
        e, prelude = self.prelude.extend(self.vocabulary(ids), cache.backbone[:before])
        h, past = torch.zeros_like(e), list(cache.refiner)
        for loop in range(loops):
            at = slice(loop * each, (loop + 1) * each)
            h, past[at] = self.blocks.extend(self._injected(h, e), past[at])
        state, coda = self.coda.extend(h, cache.backbone[before:])
        logits = self.vocabulary.decode(state)
        return LanguageOutput(logits, state, None), Cache(prelude + coda, tuple(past))

    def _injected(self, h: Tensor, e: Tensor) -> Tensor:
        return torch.exp(-F.softplus(self.rate)) * h + self.into * e
