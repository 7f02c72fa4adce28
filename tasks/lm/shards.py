"""Tokenised text in a folder, as `prepare` writes it and training reads it.

    manifest.json        what follows, with sizes and digests; written last
    tokenizer.json       the tokenizer, as `Tokenizer.to_json` describes it
    training-00000.tokens, .index     documents to train on, and where each of them ends
    held_out-00000.tokens, .index     likewise, never trained on

Tokens are unsigned integers, little-endian, of two bytes where the vocabulary allows it. Files are
read rather than mapped into memory: one that is cut while a run reads it is then an error with a
message, and not a signal that ends the process.
"""

import dataclasses
import hashlib
import json
import os
import re
import weakref
import zlib
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from tasks.training.task import SourceLost

KIND, VERSION = "attractor-models tokens", 1
MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
PARTS = ("training", "held_out")
# The end of each document in its file, in tokens, and the CRC-32 of its bytes.
INDEX = np.dtype([("end", "<u8"), ("check", "<u4")])
# Of a manifest: one of ours has about 150 bytes for each file.
MOST_BYTES = 100_000_000


class ShardError(ValueError):
    """A folder has no tokens that training can use; the message names the file and the remedy."""


def token_type(vocabulary: int) -> np.dtype[Any]:
    """The type that tokens have in files."""
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


def check_of(tokens: np.ndarray) -> int:
    """The checksum of a document."""
    return zlib.crc32(tokens.data)


def digest_of(content: bytes) -> str:
    """SHA-256, as in the manifest."""
    return hashlib.sha256(content).hexdigest()


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of tokens and its index, as the manifest lists them.

    Attributes:
        name: Of both, without the suffix.
        tokens: How many.
        documents: How many.
        index: Digest of the index.
    """

    name: str
    tokens: int
    documents: int
    index: str

    @classmethod
    def of(cls, value: Any) -> "Shard":
        """Read an entry of a manifest.

        Raises:
            ValueError: It is none.
        """
        shard = cls(**value) if isinstance(value, dict) else cls("", 0, 0, "")
        numbers = shard.tokens, shard.documents
        if any(type(number) is not int or number < 1 for number in numbers):
            raise ValueError("a file without tokens")
        pattern = rf"({'|'.join(PARTS)})-\d{{5,9}}"
        if not isinstance(shard.index, str) or not re.fullmatch(pattern, str(shard.name)):
            raise ValueError("a file of another name")
        return shard


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder holds.

    Attributes:
        vocabulary: Number of tokens that there may be.
        tokenizer: Digest of the tokenizer's file.
        training: Files of documents to train on.
        held_out: Files of documents that are never trained on.
        source: Where the text came from, for people.
    """

    vocabulary: int
    tokenizer: str
    training: list[Shard]
    held_out: list[Shard]
    source: str

    def to_json(self) -> str:
        """The content of its file."""
        head = {"kind": KIND, "version": VERSION}
        return json.dumps({**head, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of a folder.

        Raises:
            ShardError: There is none, or it is of another version, or damaged.
        """
        if folder.is_file():
            raise ShardError(
                f"{folder} is a file, and `--shards` names the folder that `prepare` wrote. Name "
                f"that: {folder.parent}."
            )
        path = folder / MANIFEST
        if not path.is_file():
            raise ShardError(
                f"{folder} has no {MANIFEST}, as a folder of tokens has once `prepare` is done "
                f"with it. Write one with `python -m tasks.lm prepare {folder} --preset PRESET`, "
                "or name another with `--shards`."
            )
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError("it is too large")
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict) or values.pop("kind", None) != KIND:
                raise ValueError(f"its `kind` is not {KIND!r}")
            version = values.pop("version", None)
            if type(version) is int and version > VERSION:
                raise ShardError(
                    f"{path} is of version {version}, and this program knows versions up to "
                    f"{VERSION}. Update attractor-models, or prepare the folder anew."
                )
            if version != VERSION:
                raise ValueError("it has no version")
            shards: dict[str, Any] = {
                part: [Shard.of(value) for value in values.pop(part)] for part in PARTS
            }
            found = cls(**values, **shards)
            if type(found.vocabulary) is not int or not 257 <= found.vocabulary <= 2**32:
                raise ValueError("its vocabulary is none")
            if not (found.training and found.held_out):
                raise ValueError("it lists no documents")
            return found
        except ShardError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            # Of the others, the message has names from the file.
            reason = error if isinstance(error, ValueError) else "its entries are not ours"
            raise ShardError(
                f"{path} is not the manifest of a folder of tokens, or is damaged ({reason}). "
                "Put the file back, or prepare the folder anew."
            ) from error


def read_tokenizer_file(folder: Path, manifest: Manifest) -> str:
    """The state of the tokenizer that made the tokens of a folder.

    Raises:
        ShardError: Its file is missing, or not the one that the manifest tells of.
    """
    path = folder / TOKENIZER
    content = path.read_bytes() if path.is_file() else None
    if content is None or digest_of(content) != manifest.tokenizer:
        problem = (
            "is missing" if content is None else "is not the tokenizer of the tokens beside it"
        )
        raise ShardError(f"{path} {problem}. Put the file back, or prepare the folder anew.")
    return content.decode(errors="replace")


def tokenizer_of(folder: Path) -> str | None:
    """The state of the tokenizer of a folder of tokens; None if it is something else.

    Raises:
        ShardError: The folder is damaged.
    """
    if folder.name in (MANIFEST, TOKENIZER) and (folder.parent / MANIFEST).is_file():
        raise ShardError(
            f"{folder} is a file of a folder of tokens. Name the folder: {folder.parent}."
        )
    if not (folder / MANIFEST).is_file():
        return None
    return read_tokenizer_file(folder, Manifest.read(folder))


class TokenStore:
    """The documents of one part of a folder, numbered from 0 on through all its files.

    Args:
        folder: The folder.
        shards: Files of the part.
        vocabulary: Number of tokens that there may be.

    Attributes:
        bounds: Where documents begin and end in the row of all tokens, shape (documents + 1,).

    Raises:
        ShardError: A file is missing, cut short or changed, as far as its size and index show;
            the tokens themselves are compared with their checksums when they are read.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], vocabulary: int):
        self.vocabulary, self.dtype = vocabulary, token_type(vocabulary)
        self._paths = [folder / f"{shard.name}.tokens" for shard in shards]
        bounds, checks = [np.zeros(1, np.int64)], []
        self._files: list[FileIO] = []
        weakref.finalize(self, _close, self._files)
        for shard, path in zip(shards, self._paths, strict=True):
            _require_size(path, shard.tokens * self.dtype.itemsize)
            index = _read_index(path.with_suffix(".index"), shard)
            bounds.append(index["end"].astype(np.int64) + bounds[-1][-1])
            checks.append(index["check"].astype(np.uint32))
            self._files.append(FileIO(path))
        # The first document and the first token of each file.
        self._first = np.cumsum([0] + [len(part) for part in checks])
        self._base = np.array([part[-1] for part in bounds[:-1]])
        self.bounds, self._checks = np.concatenate(bounds), np.concatenate(checks)

    @property
    def num_documents(self) -> int:
        """In all."""
        return len(self._checks)

    @property
    def num_tokens(self) -> int:
        """In all, with the ends of texts."""
        return int(self.bounds[-1])

    def lengths(self, documents: np.ndarray) -> np.ndarray:
        """Numbers of tokens of documents."""
        return self.bounds[documents + 1] - self.bounds[documents]

    def read(self, documents: np.ndarray, skip: int, count: int) -> np.ndarray:
        """Read documents one after the other, and compare them with their checksums.

        Args:
            documents: Their numbers.
            skip: Tokens of the first document that are left out.
            count: Tokens to return; the rest of the last document is left out.

        Raises:
            SourceLost: A file cannot be read, was cut or changed, or has unknown tokens.
        """
        lengths = self.lengths(documents)
        tokens = np.empty(int(lengths.sum()), self.dtype)
        ends = np.cumsum(lengths).tolist()
        files, offsets = self._places(documents)
        at = 0
        for document, file, offset, end in zip(
            documents.tolist(), files, offsets, ends, strict=True
        ):
            one = tokens[at:end]
            self._read_one(file, offset, one)
            if check_of(one) != self._checks[document]:
                raise self._lost(file, f"document {document - int(self._first[file]):,} of it "
                                 "does not have the checksum that it was written with")  # fmt: skip
            at = end
        if at and (largest := int(tokens.max())) >= self.vocabulary:
            raise SourceLost(
                f"{self._paths[files[0]].parent} has the token {largest:,}, and a vocabulary of "
                f"only {self.vocabulary:,}. Prepare the folder anew."
            )
        return tokens[skip : skip + count]

    def prefetch(self, documents: np.ndarray) -> None:
        """Ask the system to read documents from the disk, and go on without waiting for it."""
        if not hasattr(os, "posix_fadvise"):
            return
        size = self.dtype.itemsize
        lengths = (self.lengths(documents) * size).tolist()
        for file, offset, length in zip(*self._places(documents), lengths, strict=True):
            os.posix_fadvise(self._files[file].fileno(), offset, length, os.POSIX_FADV_WILLNEED)

    def _places(self, documents: np.ndarray) -> tuple[list[int], list[int]]:
        """For each document, its file, and where it begins there in bytes."""
        files = np.searchsorted(self._first, documents, side="right") - 1
        offsets = (self.bounds[documents] - self._base[files]) * self.dtype.itemsize
        return files.tolist(), offsets.tolist()

    def _read_one(self, file: int, offset: int, into: np.ndarray) -> None:
        try:
            self._files[file].seek(offset)
            got = self._files[file].readinto(into.data.cast("B"))
        except OSError as error:
            raise self._lost(file, str(error.strerror)) from error
        if got != into.nbytes:
            raise self._lost(file, "it was cut short")

    def _lost(self, file: int, problem: str) -> SourceLost:
        return SourceLost(
            f"{self._paths[file]} is not as it was prepared: {problem}. Put the file back, or "
            "prepare the folder anew with the same text and tokenizer."
        )


def _close(files: Sequence[FileIO]) -> None:
    for file in files:
        file.close()


def _require_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise ShardError(f"{path} is missing. Put the file back, or prepare the folder anew.")
    if (found := path.stat().st_size) != size:
        problem = "cut short" if found < size else "changed"
        raise ShardError(
            f"{path} was {problem}: it has {found:,} bytes of {size:,}. Put the file back, or "
            "prepare the folder anew."
        )


def _read_index(path: Path, shard: Shard) -> np.ndarray:
    _require_size(path, shard.documents * INDEX.itemsize)
    content = path.read_bytes()
    index = np.frombuffer(content, INDEX)
    ends = index["end"].astype(np.int64)
    if (
        digest_of(content) != shard.index
        or ends[-1] != shard.tokens
        or not bool((np.diff(ends, prepend=0) > 0).all())
    ):
        raise ShardError(
            f"{path} was changed: it is not the index that the manifest tells of. Put the file "
            "back, or prepare the folder anew."
        )
    return index
