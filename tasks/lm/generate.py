"""Write text token by token; what came before is solved once (see `LanguageModel.extend`)."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor

from tasks.lm.tokenizer import END, Tokenizer
from tasks.output import visible
from tasks.training.values import checked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Only among so many of the likeliest.
        top_p: Only among the likeliest that together have this probability.
        seed: Of the draws.

    Raises:
        ValueError: A value is of another type, or out of its range.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Sampling).items():
            checked(name, getattr(self, name), hint)
        if not self.temperature >= 0:
            raise ValueError(f"`temperature` must be at least 0, got {self.temperature}.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must lie in (0, 1], got {self.top_p}.")

    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """A token for each row of logits, shape (B, V).

        Raises:
            ValueError: The logits are not finite, or not over this temperature.
        """
        logits = logits / (self.temperature or 1.0)
        if not bool(logits.isfinite().all()):
            raise ValueError(
                f"No token can be drawn, as the logits over `temperature` = {self.temperature} are "
                "not finite. Use a `temperature` of 0 or a larger one; if they are not finite "
                "either, use the weights of another run."
            )
        if self.temperature == 0:
            return logits.argmax(-1)
        ordered, order = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        drop = before >= (1.0 if self.top_p is None else self.top_p)
        if self.top_k is not None:
            drop[:, self.top_k :] = True
        drop[:, 0] = False
        probabilities = ordered.masked_fill(drop, float("-inf")).softmax(-1)
        rank = torch.multinomial(probabilities, 1, generator=generator)
        return order.gather(-1, rank)[:, 0]


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    context: int,
    sampling: Sampling,
    max_steps: int | None = None,
) -> Iterator[Tensor]:
    """Draw tokens that follow prompts of any lengths.

    The model sees at most `context` tokens: of a longer prompt the last ones, and when text
    and prompt have grown that long, the last half of them.

    Args:
        model: A `LanguageModel`, in evaluation mode.
        prompts: Tokens, at least one each.
        tokens: How many to draw.
        context: As above; what the model was trained with.
        sampling: How.
        max_steps: Budget of solver updates per token.

    Yields:
        The next token of each prompt, shape (B,).

    Raises:
        ValueError: A prompt is empty, or the model's logits are not finite.
    """
    if not prompts or not all(prompts):
        raise ValueError("A prompt is empty: give it at least one token, such as the end of text.")
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(sampling.seed)
    rows = [list(prompt)[-context:] for prompt in prompts]
    cache, logits = _read(model, rows, max_steps, device)
    for _ in range(tokens):
        with torch.inference_mode(False):  # a token that the caller may train on
            drawn = sampling.draw(logits.float(), generator)
        yield drawn
        for row, token in zip(rows, drawn.tolist(), strict=True):
            row.append(token)
        if max(map(len, rows)) > context:
            rows = [row[-max(context // 2, 1) :] for row in rows]
            cache, logits = _read(model, rows, max_steps, device)
        else:
            out, cache = model.extend(drawn[:, None], cache, max_steps=max_steps)
            logits = out.logits[:, -1]


def _read(
    model: Any, rows: list[list[int]], max_steps: int | None, device: torch.device
) -> tuple[Any, Tensor]:
    """Solve all prompts together, padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[END] * (longest - len(row)) + row for row in rows], device=device)
    lengths = torch.tensor([[len(row)] for row in rows], device=device)
    valid = torch.arange(longest, device=device) >= longest - lengths
    out, cache = model.extend(ids, model.empty_cache(valid), max_steps=max_steps)
    return cache, out.logits[:, -1]


def print_drawn(tokenizer: Tokenizer, prompt: str, drawn: Any) -> None:
    """Print tokens as they are drawn; one character may consist of several tokens."""
    print(prompt, end="", flush=True)
    tokens: list[int] = []
    shown = ""
    for token in drawn:
        tokens.append(int(token))
        text = tokenizer.decode(tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            print(visible(text[len(shown) :]), end="", flush=True)
            shown = text
    print()
