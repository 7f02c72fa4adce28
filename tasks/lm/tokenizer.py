"""Tokenizers: bytes, or byte pairs learned from the text."""

from collections.abc import Sequence
from typing import Protocol

BYTES = 256
END = 256
"""The token after every text, in both kinds."""


class Tokenizer(Protocol):
    """The interface of tokenizers, which have `size` tokens; the token `END` ends a text."""

    size: int

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without its end."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; bytes that form no character are replaced."""
        ...

    def to_json(self) -> str:
        """The JSON values from which `load_tokenizer` makes the same tokenizer."""
        ...


class ByteTokenizer:
    """Every byte of UTF-8 is a token."""

    size = BYTES + 1

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`: here, the bytes of the text."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """Undo `encode`."""
        return bytes(token for token in tokens if token < BYTES).decode(errors="replace")

    def to_json(self) -> str:
        """See `Tokenizer`: here, there is nothing to store."""
        return ""


class BytePairs:
    """Byte-pair encoding over bytes, by the `tokenizers` package; nothing is unknown to it.

    The package numbers its tokens otherwise: here 0..255 stand for its first 256, 256 ends a
    text, and the merged ones follow.

    Args:
        state: What `to_json` returned.

    Raises:
        ValueError: The package is not installed.
    """

    def __init__(self, state: str):
        self.inner = _package().Tokenizer.from_str(state)
        self.size = self.inner.get_vocab_size() + 1

    @classmethod
    def train(cls, texts: Sequence[str], size: int) -> "BytePairs":
        """Learn a vocabulary of `size` tokens, the end of text included."""
        package = _package()
        inner = package.Tokenizer(package.models.BPE())
        inner.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = package.decoders.ByteLevel()
        trainer = package.trainers.BpeTrainer(
            vocab_size=size - 1, show_progress=False,
            initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        inner.train_from_iterator(texts, trainer)
        return cls(inner.to_str())

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`: here, byte pairs, merged greedily."""
        return [i + (i >= END) for i in self.inner.encode(text).ids]

    def decode(self, tokens: Sequence[int]) -> str:
        """Undo `encode`."""
        return self.inner.decode([i - (i > END) for i in tokens if i != END])

    def to_json(self) -> str:
        """See `Tokenizer`: here, the merges."""
        return self.inner.to_str()


def train_tokenizer(texts: Sequence[str], size: int) -> Tokenizer:
    """Byte pairs, or single bytes if `size` leaves no room for pairs."""
    return ByteTokenizer() if size == ByteTokenizer.size else BytePairs.train(texts, size)


def load_tokenizer(state: str) -> Tokenizer:
    """Make the tokenizer that `Tokenizer.to_json` describes."""
    return BytePairs(state) if state else ByteTokenizer()


def _package():
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            "Byte-pair encoding needs the package `tokenizers`: install the extra with `pip "
            "install 'attractor-models[lm]'`, or train on bytes with `--vocabulary 257`."
        ) from error
    return tokenizers
