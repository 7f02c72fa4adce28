"""The Transformer of the shape of an Attractor, as a baseline.

Legend: B batch, T tokens, V vocabulary, D width.
"""

from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn

from models.language import Cache, LanguageOutput, LanguageSpec, Vocabulary


class TransformerLM(nn.Module):
    """The baseline: as many blocks, each used once.

    Takes and ignores the attractor's options, so that both train through one loop.
    """

    solving: None = None

    def __init__(self, spec: LanguageSpec):
        super().__init__()
        self.vocabulary = Vocabulary(spec)
        blocks = spec.backbone_blocks + spec.refiner_blocks
        self.blocks = spec.stack(blocks)
        self.values = spec.values(blocks)

    def forward(self, ids: Int[Tensor, "B T"], **_: Any) -> LanguageOutput:
        """Logits of every token."""
        (values,) = self.values(ids)
        state = self.blocks(self.vocabulary(ids), *values)
        return LanguageOutput(self.vocabulary.decode(state), state, None)

    def empty_cache(self, valid: Bool[Tensor, "B T"]) -> Cache:
        """See `LanguageModel`."""
        return Cache(self.blocks.empty_caches(valid), ())

    def extend(
        self, ids: Int[Tensor, "B T"], cache: Cache, *, max_steps: int | None = None
    ) -> tuple[LanguageOutput, Cache]:
        """See `LanguageModel`."""
        (values,) = self.values(ids)
        state, past = self.blocks.extend(self.vocabulary(ids), cache.backbone, *values)
        return LanguageOutput(self.vocabulary.decode(state), state, None), Cache(past, ())
