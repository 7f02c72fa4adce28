"""LAMBADA: predict the last word of a passage, which takes the context of the whole passage.

D. Paperno et al., The LAMBADA Dataset, ACL 2016, arXiv:1606.06031. The published file has one
JSON object a line, whose "text" is the passage with its last word.
"""

import json
import math
import re
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from tasks.lm.tokenizer import END, Tokenizer

PUBLISHED = "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl"


def read_passages(path: Path) -> list[str]:
    """The passages of a file.

    Raises:
        ValueError: There is no such file, or a line is not UTF-8, or no JSON object with a "text"
            of two words.
        OSError: The file cannot be read.
    """
    if not path.is_file():
        raise ValueError(
            f"There is no file of passages at {path}, which `--lambada` names. Download "
            f"{PUBLISHED} to there, or name another."
        )
    passages = []
    # Bytes are split, since `splitlines` of a text also splits at characters that a JSON string
    # may hold, as U+2028.
    for number, line in enumerate(path.read_bytes().removeprefix(BOM_UTF8).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line.decode())["text"].strip()
            text.encode()  # JSON can name half of a pair of surrogates, which no tokenizer takes
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f'{path}, line {number}: expected a JSON object with a "text", got '
                f"{line[:200].decode(errors='replace')[:60]!r} ({type(error).__name__}: {error})."
            ) from error
        if len(text.split()) < 2:
            raise ValueError(
                f"{path}, line {number}: a passage needs two words, got {text[:60]!r}."
            )
        passages.append(text)
    if not passages:
        raise ValueError(f"{path} has no passages.")
    return passages


@torch.no_grad()
def last_words(
    model: Any,
    tokenizer: Tokenizer,
    passages: Sequence[str],
    context: int,
    max_steps: int | None = None,
) -> dict[str, float]:
    """Perplexity of the last words, and how often the model predicts them exactly.

    Args:
        model: In evaluation mode.
        tokenizer: Its own.
        passages: Texts of at least two words.
        context: The model sees the last so many tokens of a passage, also of a longer word.
        max_steps: Budget of solver updates.

    Returns:
        `lambada_perplexity` (per word: exp of the mean negative log-probability of a whole
        last word), `lambada_accuracy` (every token of it the likeliest one), `passages`.
    """
    device = next(model.parameters()).device
    nats, right = 0.0, 0
    for passage in passages:
        blank = re.search(r"\s\S*$", passage)
        start = blank.start() if blank else 0
        known = [END, *tokenizer.encode(passage[:start])]
        tokens = known + tokenizer.encode(passage[start:])
        as_written = True
        # In one part, unless the word itself is longer than the context.
        for at in range(len(known), len(tokens), context):
            part = tokens[at : at + context]
            ids = torch.tensor([tokens[: at + len(part)][-context - 1 :]], device=device)
            logits = model(ids[:, :-1], max_steps=max_steps).logits[0, -len(part) :].float()
            target = ids[0, -len(part) :]
            nats += F.cross_entropy(logits, target, reduction="sum").item()
            as_written &= bool((logits.argmax(-1) == target).all())
        right += as_written
    count = len(passages)
    return {
        "lambada_perplexity": math.exp(min(nats / count, 700.0)),
        "lambada_accuracy": right / count,
        "passages": count,
    }
