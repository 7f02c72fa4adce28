"""A cache of the package `transformers` that holds equilibria: each token is solved once.

Its memory is bounded by the context of the model. A text that outgrows the context goes on from the
last half of it, which is solved anew, exactly as in `tasks.lm.generate`.

Legend: B batch, T new tokens, P tokens that are kept.
"""

from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from models import LanguageOutput
from models.language import Cache as Past
from tasks.lm.tokenizer import END


class EquilibriumCache(Cache):
    """The tokens so far, and what the blocks of a language model keep of their equilibria.

    Args:
        context: The most tokens that are kept.
    """

    def __init__(self, context: int):
        self.kept = Kept(context)
        super().__init__(layers=[self.kept])


class Kept(CacheLayerMixin):
    """All of a model as one layer of a cache, since its tokens are solved for as a whole.

    Attributes:
        seen: Number of tokens read so far, padding and those that are kept no longer included.
        ids: Shape (B, P): the tokens that are kept, padded on the left; None before the first one.
        valid: Shape (B, P): which of them are no padding.
        past: What the model keeps of them.
    """

    supports_early_init = False

    def __init__(self, context: int):
        super().__init__()
        self.context, self.seen = context, 0
        self.ids: Tensor | None = None
        self.valid: Tensor | None = None
        self.past: Past | None = None

    def read(
        self,
        net: Any,
        ids: Int[Tensor, "B T"],
        valid: Bool[Tensor, "B T"],
        needed: int,
        max_steps: int | None,
    ) -> LanguageOutput:
        """Solve new tokens, and all that are kept of a text where it outgrows the context.

        Args:
            net: A `LanguageModel`.
            ids: The new tokens.
            valid: Which of them are no padding, which may only precede a text.
            needed: For how many of the last tokens the caller needs logits.
            max_steps: Budget of solver updates per token.

        Returns:
            The output for the last tokens, which are at least `needed`.

        Raises:
            ValueError: Padding is elsewhere, a text is empty, or more logits are needed than there
                are tokens that the context has room for.
        """
        known = 0 if self.ids is None else self.ids.shape[1]
        _check_padding(valid, begins=known == 0)
        whole, mask, past, new = ids.masked_fill(~valid, END), valid, self.past, ids
        if self.ids is not None and self.valid is not None:
            whole, mask = torch.cat((self.ids, ids), 1), torch.cat((self.valid, valid), 1)
        if past is None or whole.shape[1] > self.context:
            most = self.context if past is None else max(self.context // 2, 1)
            whole, mask = _last(whole, mask, most, needed)
            self.past = None  # so that its memory is free for what takes its place
            past, new = net.empty_cache(mask), whole
        out, self.past = net.extend(new, past, max_steps=max_steps)
        self.ids, self.valid, self.seen = whole, mask, self.seen + ids.shape[1]
        return out

    def get_seq_length(self) -> int:
        """The number of tokens read so far, as `generate` counts them."""
        return self.seen

    def get_max_length(self) -> int:
        """The most tokens that are kept."""
        return self.context

    def reset(self) -> None:
        """Forget all tokens."""
        self.seen, self.ids, self.valid, self.past = 0, None, None, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the sequences that a beam search goes on with."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences, of which one may be chosen more than once."""
        if self.ids is not None and self.valid is not None and self.past is not None:
            rows = indices.to(self.ids.device)
            self.ids, self.valid = self.ids[rows], self.valid[rows]
            self.past = self.past.select(rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence, one copy after the other."""
        if self.ids is not None:
            self.batch_select_indices(torch.arange(len(self.ids)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Tokens that are solved for stay: only a crop of none is possible."""
        if tokens_to_remove:
            raise ValueError(
                "A cache of equilibria cannot take tokens back. Use another way to generate than "
                "assisted decoding, or begin a new cache."
            )

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> NoReturn:
        """See `update`."""
        self.update(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> NoReturn:
        """Keys and values are not added from outside: see `read`."""
        raise TypeError("A cache of equilibria is for the language models of this project alone.")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of tokens that are seen together with new ones, and that of those dropped."""
        known = 0 if self.ids is None else self.ids.shape[1]
        return known + query_length, self.seen - known


def _check_padding(valid: Bool[Tensor, "B T"], begins: bool) -> None:
    """Refuse padding but before a text.

    Raises:
        ValueError: It is elsewhere, or a text is empty.
    """
    if bool(valid.all()):
        return
    if not begins or bool((valid[:, 1:] < valid[:, :-1]).any()):
        raise ValueError(
            "With a cache, `attention_mask` may be 0 only before the first token of a text. Pad on "
            "the left: `tokenizer.padding_side = 'left'`."
        )
    if not bool(valid[:, -1:].all()):
        raise ValueError("A prompt is empty: give it at least one token, such as the end of text.")


def _last(
    ids: Tensor, valid: Tensor, most: int, needed: int
) -> tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """The last tokens of each text, at most `most`, without columns of padding in front.

    Raises:
        ValueError: More of them are needed.
    """
    if needed > most:
        raise ValueError(
            f"The logits of {needed} tokens are asked for, and only {most} fit into the context "
            "of this model. Give fewer tokens, or ask for the last logits alone with "
            "`logits_to_keep=1`, or leave the cache out with `use_cache=False`."
        )
    longest = int(valid.sum(1).max())
    kept = max(min(most, longest), needed)
    return ids[:, -kept:], valid[:, -kept:]
