"""Write the tokens of a text or a data set into a folder, once, for many runs to read."""

import contextlib
import itertools
import re
import shlex
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from tasks.folders import LOCK, FolderLock, draft, sweep
from tasks.lm.config import LanguageConfig
from tasks.lm.data import is_held_out, read_texts, split
from tasks.lm.shards import (
    INDEX,
    MANIFEST,
    PARTS,
    TOKENIZER,
    Manifest,
    Shard,
    check_of,
    digest_of,
    read_tokenizer_file,
    token_type,
)
from tasks.lm.stream import Documents, learn_tokenizer
from tasks.lm.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from tasks.output import wrapped

# A document of more tokens is stored as several, so that little is read beyond what is needed.
LONGEST = 2**16
# Characters that are encoded at once, on all cores; and tokens from one line of progress on.
AT_ONCE, SHOWN = 2_000_000, 50_000_000
# Files that are here before the manifest is.
OWN = re.compile(rf"({'|'.join(PARTS)})-\d+\.(tokens|index)|{re.escape(TOKENIZER)}")
# Texts, and whether they are held out.
Texts = Iterable[tuple[str, bool]]


class PartWriter:
    """Writes the documents of one part; a file gets its name when it is whole.

    Args:
        folder: Where.
        part: Its name.
        vocabulary: Number of tokens that there may be.
        shard_tokens: Of a file, at most.

    Attributes:
        shards: The files that are whole.
        tokens: Of all files.
    """

    def __init__(self, folder: Path, part: str, vocabulary: int, shard_tokens: int):
        self.folder, self.part, self.shard_tokens = folder, part, shard_tokens
        self.longest = min(LONGEST, shard_tokens)
        self.dtype = token_type(vocabulary)
        self.shards: list[Shard] = []
        self.tokens = self.documents = 0
        self._index: list[tuple[int, int]] = []
        self._name, self._file = "", contextlib.ExitStack()
        self._out: IO[bytes] | None = None

    def add(self, tokens: list[int]) -> None:
        """Write a document, with its end of text."""
        whole = np.array(tokens, self.dtype)
        self.documents += 1
        self.tokens += len(whole)
        for first in range(0, len(whole), self.longest):
            piece = whole[first : first + self.longest]
            if self._written + len(piece) > self.shard_tokens:
                self.finish()
            if self._out is None:
                self._begin()
            assert self._out is not None
            self._out.write(piece.data)
            self._index.append((self._written + len(piece), check_of(piece)))

    def finish(self) -> None:
        """Complete the file in hand."""
        if self._out is None:
            return
        content = np.array(self._index, INDEX).tobytes()
        with draft(self.folder / f"{self._name}.index") as path:
            path.write_bytes(content)
        self._file.close()  # which names the file
        end, documents = self._index[-1][0], len(self._index)
        self.shards.append(Shard(self._name, end, documents, digest_of(content)))
        self._index, self._out = [], None

    def abandon(self) -> None:
        """Remove all files."""
        error = OSError("abandoned")
        with contextlib.suppress(OSError):
            self._file.__exit__(OSError, error, None)
        names = [shard.name for shard in self.shards] + [self._name]
        for path in (
            self.folder / f"{name}{end}" for name in names for end in (".tokens", ".index")
        ):
            with contextlib.suppress(OSError):
                path.unlink()

    @property
    def _written(self) -> int:
        """Tokens of the file in hand."""
        return self._index[-1][0] if self._index else 0

    def _begin(self) -> None:
        self._name = f"{self.part}-{len(self.shards):05}"
        path = self._file.enter_context(draft(self.folder / f"{self._name}.tokens"))
        self._out = self._file.enter_context(path.open("wb"))


def prepare(
    folder: Path,
    config: LanguageConfig,
    state: str | None = None,
    tokens: int | None = None,
    shard_tokens: int = 250_000_000,
) -> Manifest:
    """Learn a tokenizer unless there is one, and write the tokens of all documents.

    The manifest comes last: a folder without one holds nothing that training would take.

    Args:
        folder: New or empty.
        config: Says where the text is, how large the vocabulary, and what is held out.
        state: A tokenizer's state, to use instead of learning one.
        tokens: Stop after about so many to train on; by default after the last document.
        shard_tokens: Of a file, at most; longer documents are stored in pieces.

    Raises:
        FolderInUse: Another process writes to the folder.
        ValueError: The folder holds files, the text cannot be read or is too short, or the disk is
            full; what was written is removed.
    """
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        was_ours = (folder / LOCK).exists()
        lock = FolderLock(folder, made)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written ({error.strerror}). Name another folder."
        ) from error
    with lock:
        _make_empty(folder, was_ours)
        tokenizer, texts, source = _open(config, state)
        data = config.data
        writers = {part: PartWriter(folder, part, data.vocabulary, shard_tokens) for part in PARTS}
        names = (TOKENIZER, MANIFEST)
        try:
            content = tokenizer.to_json().encode()
            _encode(texts, tokenizer, writers, tokens)
            _write(folder / TOKENIZER, content)
            shards = {part: writer.shards for part, writer in writers.items()}
            manifest = Manifest(
                vocabulary=data.vocabulary, tokenizer=digest_of(content), source=source, **shards
            )
            _write(folder / MANIFEST, manifest.to_json().encode())
        except BaseException as error:
            for writer in writers.values():
                writer.abandon()
            for name in names:
                with contextlib.suppress(OSError):
                    (folder / name).unlink()
            if not isinstance(error, OSError):
                raise
            written = sum(writer.tokens for writer in writers.values())
            raise ValueError(
                f"{folder} cannot be written after {written:,} tokens ({error.strerror or error}); "
                "what was written is removed again. Make room, or name a folder on another disk."
            ) from error
    return manifest


def summary(folder: Path, made: Manifest, train: str) -> str:
    """What `prepare` wrote, in words, and the command that trains on it.

    Args:
        folder: Where.
        made: What is there.
        train: The command, without the options that name tokens.
    """
    counts = [sum(shard.tokens for shard in part) for part in (made.training, made.held_out)]
    known = load_tokenizer(read_tokenizer_file(folder, made)).size
    padding = (
        f" The tokenizer has {known:,} tokens: the other {made.vocabulary - known:,} of the "
        f"vocabulary of {made.vocabulary:,} never occur, and only pad the model's embedding."
    )
    written = (
        f"Written: {folder}, {counts[0]:,} tokens to train on and {counts[1]:,} held out."
        f"{padding if known < made.vocabulary else ''} What next:"
    )
    return (
        f"{wrapped(written)}\n"
        f"  {train} --shards {shlex.quote(str(folder))} --vocabulary {made.vocabulary}"
    )


def _make_empty(folder: Path, was_ours: bool) -> None:
    """Remove what a killed `prepare` left in a folder, which is locked.

    Raises:
        ValueError: The folder holds anything else.
    """
    sweep(folder)
    held = [path for path in sorted(folder.iterdir()) if path.name != LOCK]
    if held and not (was_ours and all(OWN.fullmatch(path.name) for path in held)):
        whole = (folder / MANIFEST).exists()
        holds = "holds tokens already" if whole else f"holds {held[0].name}"
        raise ValueError(f"{folder} {holds}. Name a new or empty folder.")
    for path in held:
        path.unlink()


def _write(path: Path, content: bytes) -> None:
    with draft(path) as at:
        at.write_bytes(content)


def _open(config: LanguageConfig, state: str | None) -> tuple[Tokenizer, Texts, str]:
    """The tokenizer, the documents, and a description of their source."""
    data = config.data
    known = None if state is None else _known(state, data.vocabulary)
    if data.dataset is None:
        train, held_out = split(read_texts(data.text, data.max_bytes), data.held_out)
        tokenizer = known or train_tokenizer(train, data.vocabulary)
        texts = [(text, part is held_out) for part in (train, held_out) for text in part]
        return tokenizer, texts, str(data.text or "the standard library")
    documents = Documents(config)
    if known is None:
        known, _ = learn_tokenizer(documents, config)
        documents.rewind()
    found = iter(documents.read, None)
    texts = ((text, is_held_out(text, data.held_out)) for text in found)
    return known, texts, f"{data.dataset} {data.dataset_name or ''}".strip()


def _known(state: str, vocabulary: int) -> Tokenizer:
    """The tokenizer that a user named, for tokens of this vocabulary.

    A vocabulary may be larger, as it may be of a tokenizer that is learned: where the text has
    too few pairs for it, or for a size that matrix products like. Of bytes it may not, since
    training would then look for pairs.
    """
    tokenizer = load_tokenizer(state)
    if tokenizer.size > vocabulary or (not state and tokenizer.size < vocabulary):
        raise ValueError(
            f"The tokenizer that `--tokenizer` names has {tokenizer.size:,} tokens"
            f"{'' if state else ' (bytes)'}, and the vocabulary is {vocabulary:,}. Prepare with "
            f"`--vocabulary {tokenizer.size}`, or name another tokenizer."
        )
    return tokenizer


def _encode(
    texts: Texts, tokenizer: Tokenizer, writers: dict[str, PartWriter], most: int | None
) -> None:
    """Write the tokens of texts, up to `most` to train on."""
    training, held_out = (writers[part] for part in PARTS)
    began, shown = time.monotonic(), 0
    # Held-out text of a file comes last.
    for chunk in _chunks((text, held) for text, held in texts if text):
        enough = most is not None and training.tokens >= most
        wanted = [each for each in chunk if each[1] or not enough]
        encoded = tokenizer.encode_batch([text for text, _ in wanted])
        for (_, held), tokens in zip(wanted, encoded, strict=True):
            if held or most is None or training.tokens < most:
                (held_out if held else training).add(tokens)
        if training.tokens - shown >= SHOWN:
            shown = training.tokens
            of = f" of {most:,}" if most is not None else ""
            speed = shown / (time.monotonic() - began)
            print(f"{shown:,}{of} tokens, {speed:,.0f} per second", flush=True)
        if most is not None and training.tokens >= most and held_out.tokens:
            break
    for writer in writers.values():
        writer.finish()
    if not (training.tokens and held_out.tokens):
        lacking = "held-out text" if training.tokens else "text to train on"
        raise ValueError(
            f"There is no {lacking}: name more text, or another share of it with `--held-out`."
        )


def _chunks(texts: Texts) -> Iterator[list[tuple[str, bool]]]:
    """Texts of about `AT_ONCE` characters together."""
    texts = iter(texts)
    while first := list(itertools.islice(texts, 1)):
        size = len(first[0][0])
        while size < AT_ONCE and (more := next(texts, None)) is not None:
            first.append(more)
            size += len(more[0])
        yield first
