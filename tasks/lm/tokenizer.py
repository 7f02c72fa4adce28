"""Tokenizers: bytes, or byte pairs learned from the text."""

from collections.abc import Sequence
from typing import Any, Protocol

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.checkpoints.file import CheckpointError
from tasks.lm.config import LanguageConfig
from tasks.lm.released_tokenizer import BEGIN, ReleasedTokenizer
from tasks.lm.tokenizer_files import (
    BYTES,
    END,
    RELEASED,
    over_bytes,
    tokenizers_package,
    vocabulary_and_merges,
)


class Tokenizer(Protocol):
    """The interface of tokenizers, which have `size` tokens.

    Each text is followed by the tokens `ends`, of which the last is `END`: it is also what comes
    before the first text.
    """

    size: int
    ends: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without its end."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, with its end."""
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
    ends: tuple[int, ...] = (END,)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`: here, the bytes of the text."""
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`."""
        return [[*text.encode(), END] for text in texts]

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

    Raises:
        ValueError: The package is not installed, or the state is none of ours.
    """

    ends: tuple[int, ...] = (END,)

    def __init__(self, state: str):
        package = tokenizers_package()
        vocabulary, merges = vocabulary_and_merges(state)
        self.inner = over_bytes(package.models.BPE(vocabulary, merges))
        self.size = self.inner.get_vocab_size() + 1

    @classmethod
    def train(cls, texts: Sequence[str], size: int) -> "BytePairs":
        """Learn a vocabulary of `size` tokens, the end of text included."""
        package = tokenizers_package()
        inner = over_bytes(package.models.BPE())
        trainer = package.trainers.BpeTrainer(
            vocab_size=size - 1, show_progress=False,
            initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        inner.train_from_iterator(texts, trainer)
        return cls(inner.to_str())

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`: here, byte pairs, merged greedily."""
        return [i + (i >= END) for i in self.inner.encode(text).ids]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer`: here, on all cores, or as many as RAYON_NUM_THREADS says."""
        found = self.inner.encode_batch_fast(list(texts))
        return [[*(i + (i >= END) for i in each.ids), END] for each in found]

    def decode(self, tokens: Sequence[int]) -> str:
        """Undo `encode`."""
        return self.inner.decode([i - (i > END) for i in tokens if i != END])

    def to_json(self) -> str:
        """See `Tokenizer`: here, the merges."""
        return self.inner.to_str()


def train_tokenizer(texts: Sequence[str], size: int) -> Tokenizer:
    """Byte pairs, or single bytes if `size` leaves no room for pairs."""
    return ByteTokenizer() if size == ByteTokenizer.size else BytePairs.train(texts, size)


def load_tokenizer(state: str, vocabulary: int | None = None) -> Tokenizer:
    """Make the tokenizer that `Tokenizer.to_json` describes.

    Args:
        state: The description.
        vocabulary: How many tokens the model knows that the tokenizer is for.

    Raises:
        ValueError: The description is broken, or is that of a tokenizer for another model.
    """
    if not isinstance(state, str):
        raise ValueError(f"The state of a tokenizer must be text, got {type(state).__name__}.")
    if state.startswith(RELEASED):
        tokenizer: Tokenizer = ReleasedTokenizer(state)
    else:
        tokenizer = BytePairs(state) if state else ByteTokenizer()
    if vocabulary is not None and (
        tokenizer.size > vocabulary or (not state and tokenizer.size < vocabulary)
    ):
        raise ValueError(
            f"The tokenizer has {tokenizer.size:,} tokens{'' if state else ' (bytes)'}, and is of "
            f"another model than this one, whose vocabulary has {vocabulary:,}. Use the file that "
            "the model was saved in, or train again."
        )
    return tokenizer


def numbered_as_ours(tokenizer: Tokenizer) -> tuple[Any, str]:
    """The same tokens as a `tokenizers.Tokenizer` with our numbers, for other programs.

    It puts an end of text before each text, as in training.

    Returns:
        The tokenizer, and the name of the end of text in it.

    Raises:
        ValueError: The package `tokenizers` is not installed.
    """
    package = tokenizers_package()
    state = tokenizer.to_json()
    if state.startswith(RELEASED):
        return _beginning_with(ReleasedTokenizer(state).with_special_tokens(), BEGIN), BEGIN
    if state:
        theirs, merges = vocabulary_and_merges(state)
        vocabulary = {token: i + (i >= END) for token, i in theirs.items()}
    else:
        vocabulary, merges = {_character(byte): byte for byte in range(BYTES)}, []
    end = "<|endoftext|>"
    while end in vocabulary:
        end = f"<{end}>"
    inner = over_bytes(package.models.BPE({**vocabulary, end: END}, merges))
    inner.add_special_tokens([package.AddedToken(end, special=True, normalized=False)])
    return _beginning_with(inner, end), end


def _beginning_with(inner: Any, end: str) -> Any:
    """A tokenizer of the package that puts the token END, of this name, before each text."""
    inner.post_processor = tokenizers_package().processors.TemplateProcessing(
        single=f"{end} $A", pair=f"{end} $A {end}:1 $B:1", special_tokens=[(end, END)]
    )
    return inner


def _character(byte: int) -> str:
    """How the package writes a byte: as itself if that is visible, or else shifted behind Latin-1.

    References:
        A. Radford et al., Language Models are Unsupervised Multitask Learners, 2019: the table
        `bytes_to_unicode` of the published encoder.
    """
    invisible = [*range(33), *range(127, 161), 173]
    return chr(BYTES + invisible.index(byte) if byte in invisible else byte)


def read_tokenizer(checkpoint: Checkpoint, config: LanguageConfig | None = None) -> Tokenizer:
    """The tokenizer in a checkpoint of a model.

    Args:
        checkpoint: The checkpoint.
        config: That of the model, if the tokenizer is to be used with it.

    Raises:
        CheckpointError: It is missing, broken, or that of another model.
    """
    state = checkpoint.value("tokenizer")
    try:
        return load_tokenizer(state, None if config is None else config.data.vocabulary)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
