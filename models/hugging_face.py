"""Backbones that Hugging Face's `transformers` builds: GPT-2 and Llama, of any size, untrained.

Legend: B batch, T new tokens, D width.
"""

import logging
from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from models.attention import KVCache, head_width
from models.blocks import Recomputable

Architecture = Literal["gpt2", "llama"]


class HuggingFaceStack(Recomputable):
    """Blocks of GPT-2 or Llama and the norm that ends these models, used like a `Stack`.

    Reads embeddings and has none of its own, except GPT-2's of positions. Weights are random,
    with a standard deviation of D^(-1/2); nothing is downloaded. Attention is PyTorch's, which
    keeps float64; Llama's norms round to float32.

    Args:
        architecture: "gpt2" (learned positions, LayerNorm, biases) or "llama" (rotary positions,
            RMSNorm, a gated MLP).
        num_blocks: Number of blocks, at least 1.
        width: D.
        num_heads: Heads of the attention.
        expansion: Hidden width of the MLP over D. Llama's has two thirds of that, since it has
            three matrices and not two.
        context: Positions that GPT-2 learns; Llama's have no limit.

    Raises:
        ValueError: `transformers` is missing, or `num_heads` does not divide `width` (for Llama
            into even parts).

    References:
        A. Radford et al., Language Models are Unsupervised Multitask Learners, 2019 (GPT-2).
        H. Touvron et al., LLaMA, 2023, arXiv:2302.13971.
        T. Wolf et al., Transformers, EMNLP 2020 demos, arXiv:1910.03771.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_blocks: int,
        width: int,
        num_heads: int,
        expansion: float = 4.0,
        context: int = 1024,
    ):
        super().__init__()
        self.head_shape = num_heads, head_width(width, num_heads, even=architecture == "llama")
        self.limit = context if architecture == "gpt2" else None
        transformers = _package(architecture)
        common: dict[str, Any] = {
            # No tokens: the vocabulary of one is dropped below.
            "vocab_size": 1, "bos_token_id": None, "eos_token_id": None,
            # The usual 0.02 is for widths of a thousand and more.
            "initializer_range": width**-0.5,
        }  # fmt: skip
        if architecture == "gpt2":
            config = transformers.GPT2Config(
                n_layer=num_blocks, n_embd=width, n_head=num_heads, n_positions=context,
                n_inner=round(expansion * width), resid_pdrop=0.0, embd_pdrop=0.0,
                attn_pdrop=0.0, **common,
            )  # fmt: skip
        else:
            config = transformers.LlamaConfig(
                num_hidden_layers=num_blocks, hidden_size=width, num_attention_heads=num_heads,
                intermediate_size=round(expansion * width * 2 / 3), **common,
            )  # fmt: skip
        self.model: Any = transformers.AutoModel.from_config(config, attn_implementation="sdpa")
        self.model.set_input_embeddings(None)
        self.cache_type = transformers.DynamicCache

    def __len__(self) -> int:
        return self.model.config.num_hidden_layers

    def forward(self, h_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Apply the blocks to whole sequences, from their first token on.

        Raises:
            ValueError: More tokens than GPT-2 has positions.
        """
        self._check(h_BTD.shape[1])
        return self.model(inputs_embeds=h_BTD, use_cache=False).last_hidden_state

    @property
    def recomputes(self) -> bool:
        """See `Recomputable`."""
        return self.model.is_activation_checkpointing

    def recompute_activations(self) -> None:
        """Recompute the activations of blocks in training; see `models.recompute_activations`."""
        # The library would warn that it has no embeddings: they are ours, and get their gradient.
        log = logging.getLogger("transformers.modeling_utils")
        before = log.level
        log.setLevel(logging.ERROR)
        self.model.activation_checkpointing_enable()
        log.setLevel(before)

    def extend(
        self, h_BTD: Float[Tensor, "B T D"], past: Sequence[KVCache]
    ) -> tuple[Float[Tensor, "B T D"], tuple[KVCache, ...]]:
        """As `forward`, for tokens that follow those of `past`, which holds a cache per block.

        Raises:
            ValueError: A sequence has more tokens than GPT-2 has positions.
        """
        valid, position_BT = past[0].positions_of_next(h_BTD.shape[1])
        longest = past[0].keys.shape[2] + h_BTD.shape[1]
        if valid is not None and longest > (self.limit or longest):
            # Padding has no position: only now is it worth waiting for the device.
            longest = int(position_BT.max()) + 1
        self._check(longest)
        cache = self.cache_type()
        for index, before in enumerate(past):
            cache.update(before.keys, before.values, index)
        out = self.model(
            inputs_embeds=h_BTD,
            attention_mask=valid,
            position_ids=position_BT,
            cache=cache,
            use_cache=True,
        )
        after = tuple(KVCache(layer.keys, layer.values, valid) for layer in cache.layers)
        return out.last_hidden_state, after

    def empty_caches(self, valid: Bool[Tensor, "B T"]) -> tuple[KVCache, ...]:
        """The cache of each block before a prompt, of which `valid` tells tokens from padding."""
        return (KVCache.empty(valid, next(self.parameters()), *self.head_shape),) * len(self)

    def _check(self, num_tokens: int) -> None:
        if self.limit is not None and num_tokens > self.limit:
            raise ValueError(
                f"This GPT-2 has learned positions for {self.limit} tokens, got a sequence of "
                f"{num_tokens}. Give it fewer, or build it with a larger `context`."
            )


def _package(architecture: Architecture) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"The backbone {architecture!r} needs the package `transformers`: install the extra "
            "with `pip install 'attractor-models[lm]'`, or take another `mixer`."
        ) from error
    return transformers
