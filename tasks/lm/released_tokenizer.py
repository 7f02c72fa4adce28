"""The tokenizer of the models that were released with arXiv:2605.12466, with our numbers.

It is a file of the package `tokenizers`: byte pairs over bytes, a pattern that splits a text first,
and special tokens for the beginning and the end of a text. Our token `END` stands between texts and
before the first one. Here it is the beginning of a text, and the end of a text comes before it.

References:
    `scripts/tok_train.py` and `recpre/data_loading_utils.py` of https://github.com/jacobfa/Attractor.
"""

import json
from collections.abc import Sequence
from typing import Any

from tasks.lm.tokenizer_files import (
    END,
    RELEASED,
    broken,
    read_object,
    tokenizers_package,
    vocabulary_and_merges,
)

BEGIN, LAST = "<|bos|>", "<|eos|>"


class ReleasedTokenizer:
    """Byte pairs with the splits and special tokens of a file of the package `tokenizers`.

    Args:
        state: What `to_json` returns.

    Attributes:
        order: The number that each of our tokens has in the file.

    Raises:
        ValueError: The package is not installed, or the file is that of another kind.
    """

    def __init__(self, state: str):
        found = read_object(state)
        if not isinstance(found, dict) or set(found) != {"released"}:
            raise broken("it is not a file of the package `tokenizers`")
        self.file, self.pattern = found["released"], _pattern(found["released"])
        like = _splitting(self.pattern, {}, [])
        free = ("added_tokens", "pre_tokenizer")
        theirs, self.merges = vocabulary_and_merges(json.dumps(self.file), like, free)
        if strangers := [name for name in (BEGIN, LAST) if name not in theirs]:
            raise broken(f"it has no token {' and no token '.join(map(repr, strangers))}")
        self.size = len(theirs)
        self.order = [number for number in range(self.size) if number != theirs[BEGIN]]
        self.order.insert(END, theirs[BEGIN])
        ours = {number: token for token, number in enumerate(self.order)}
        self.vocabulary = {name: ours[number] for name, number in theirs.items()}
        self.special = [name for name in _special(self.file) if name in theirs]
        self.hidden = {self.vocabulary[name] for name in self.special}
        self.ends = (self.vocabulary[LAST], END)
        self.inner = _splitting(self.pattern, self.vocabulary, self.merges)

    @classmethod
    def of_file(cls, content: str) -> "ReleasedTokenizer":
        """The tokenizer of a file, usually `tokenizer.json`."""
        return cls(f"{RELEASED}{content}}}")

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`; names of special tokens in a text are text."""
        return self.inner.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        found = self.inner.encode_batch_fast(list(texts))
        return [[*each.ids, *self.ends] for each in found]

    def decode(self, tokens: Sequence[int]) -> str:
        """Undo `encode`; special tokens are left out."""
        return self.inner.decode([token for token in tokens if token not in self.hidden])

    def to_json(self) -> str:
        """See `Tokenizer`: here, the file."""
        return f"{RELEASED}{json.dumps(self.file)}}}"

    def with_special_tokens(self) -> Any:
        """The same tokens as a `tokenizers.Tokenizer`, which finds special ones in a text."""
        inner = _splitting(self.pattern, self.vocabulary, self.merges)
        added = tokenizers_package().AddedToken
        inner.add_special_tokens(
            [added(name, special=True, normalized=False) for name in self.special]
        )
        return inner


def _splitting(pattern: str, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """A tokenizer of the package that splits texts by a pattern and has these byte pairs."""
    package = tokenizers_package()
    inner = package.Tokenizer(
        package.models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=False)
    )
    before = package.pre_tokenizers
    try:
        parts = before.Split(package.Regex(pattern), "isolated", invert=False)
    except Exception as error:  # the package raises nothing more specific
        raise broken(f"its pattern is no regular expression ({error})") from error
    over_bytes = before.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = before.Sequence([parts, over_bytes])
    inner.decoder = package.decoders.ByteLevel()
    return inner


def _pattern(file: Any) -> str:
    """The pattern by which a file splits texts, if it does that and goes over bytes after it."""
    splits = file.get("pre_tokenizer") if isinstance(file, dict) else None
    parts = splits.get("pretokenizers") if isinstance(splits, dict) else None
    first = parts[0] if isinstance(parts, list) and parts else None
    pattern = first.get("pattern") if isinstance(first, dict) else None
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(regex, str):
        raise broken("it does not split texts by a regular expression, as the released one does")
    if splits != json.loads(_splitting(regex, {}, []).to_str())["pre_tokenizer"]:
        raise broken(f"it splits texts otherwise than the released one: {str(splits)[:200]}")
    return regex


def _special(file: dict[str, Any]) -> list[str]:
    """The names of the special tokens of a file."""
    added = file.get("added_tokens")
    parts = added if isinstance(added, list) else []
    named = [each.get("content") for each in parts if isinstance(each, dict)]
    return [name for name in named if isinstance(name, str)]
