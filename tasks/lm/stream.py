"""A data set that is streamed: documents in their order, concatenated.

Each document is followed by an end of text, and the row of all tokens is cut into sequences,
so that every token is predicted once before any is predicted again. Where a run stands is a
document and an offset in it, whatever the size of its batches.
"""

import re
import reprlib
import textwrap
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.lm.config import LanguageConfig
from tasks.lm.data import Batches, Corpus, is_held_out, load_corpus
from tasks.lm.shard_batches import load_shards
from tasks.lm.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer, train_tokenizer
from tasks.training.task import SourceLost

# Seconds before each further try to read on; after the last one the run ends. `datasets` has
# pauses of its own below these, for what it knows to be the network.
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
# What may pass: files and connections, streams cut off, and the Hub's native client.
PASSING = (OSError, EOFError, RuntimeError)
# Damaged data, or a place in a checkpoint that the data do not have.
DAMAGED = (ValueError, TypeError, LookupError, AttributeError)


class Documents:
    """Reads the texts of a data set in order, from any position, and retries after interruptions.

    Attributes:
        position: Where the next document is, as JSON values: how many were read, and what the
            reader needs to go on from there.

    Raises:
        ValueError: There is no such data set, it cannot be reached, or `datasets` is missing.
    """

    def __init__(self, config: LanguageConfig):
        self.name, self.column = config.data.dataset, config.data.column
        self.reader = _open(config)
        self.position: dict[str, Any] = {"documents": 0, "reader": self.reader.state_dict()}
        self._first, self._rows = self.position, None

    def rewind(self) -> None:
        """Go back to the first document."""
        self.seek(self._first)

    def seek(self, position: dict[str, Any]) -> None:
        """Continue from a `position`."""
        self.position, self._rows = position, None

    def read(self) -> str | None:
        """Read the next text, which may be empty; None after the last one.

        Raises:
            SourceLost: Reading failed, also after pauses; the position is that of before.
            ValueError: The column is missing, or has no texts.
        """
        row = self._next_row()
        if row is None:
            return None
        if self.column not in row:
            raise ValueError(
                f"The data set {self.name} has no column {self.column!r}, only "
                f"{', '.join(map(repr, row))}. Name one of them with `--column`."
            )
        text = row[self.column]
        if not isinstance(text, str | None):
            raise ValueError(
                f"The column {self.column!r} of the data set {self.name} has no texts: document "
                f"{self.position['documents']} is of type {type(text).__name__}. Name another "
                "with `--column`."
            )
        return text or ""

    def _next_row(self) -> dict[str, Any] | None:
        for pause in (*PAUSES, None):
            try:
                return self._try_row()
            except PASSING as error:
                self._rows = None
                if pause is None:
                    raise self._lost(error) from error
                print(f"{self._describe(error)} Trying again in {pause:g} s ...", flush=True)
                time.sleep(pause)
            except DAMAGED as error:  # another try would not repair it
                self._rows = None
                raise self._lost(error) from error
        raise AssertionError("the last pause is None")

    def _try_row(self) -> dict[str, Any] | None:
        if self._rows is None:
            self.reader.load_state_dict(self.position["reader"])
            self._rows = iter(self.reader)
        row = next(self._rows, None)
        if row is not None:
            count = self.position["documents"] + 1
            self.position = {"documents": count, "reader": self.reader.state_dict()}
        return row

    def _describe(self, error: Exception) -> str:
        reason = textwrap.shorten(str(error), 200) or type(error).__name__
        read = self.position["documents"]
        return f"The data set {self.name} cannot be read on after {read:,} documents ({reason})."

    def _lost(self, error: Exception) -> SourceLost:
        return SourceLost(f"{self._describe(error)} Check the network and the files.")


class StreamedBatches(Batches):
    """Documents as the training loop sees them; nothing is drawn at random."""

    def __init__(self, corpus: Corpus, documents: Documents, config: LanguageConfig):
        super().__init__(corpus, config)
        self.documents = documents
        self._passes = 0
        # Documents that are not used up, each with the position before it, and how many tokens
        # of the first one are.
        self._pending: deque[tuple[dict[str, Any], list[int]]] = deque()
        self._offset = 0

    @property
    def source(self) -> str:
        """See `Batches`."""
        return f"the documents of {self.documents.name}"

    def batch(
        self, size: int, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """The next tokens and the tokens that follow them, both of shape (size, context)."""
        count = size * self.config.data.context
        self._fill(count + 1)
        row = [token for _, tokens in self._pending for token in tokens]
        row = row[self._offset : self._offset + count + 1]
        self._offset += count
        while self._offset >= len(self._pending[0][1]):
            self._offset -= len(self._pending.popleft()[1])
        # Two tensors, which share no memory: the loop overwrites them one by one.
        return torch.tensor(row[:-1]).view(size, -1), torch.tensor(row[1:]).view(size, -1)

    def state_dict(self) -> dict[str, Any]:
        """See `Task`."""
        before = self._pending[0][0] if self._pending else self._place()
        return {**before, "offset": self._offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Task`."""
        place = dict(state)
        self._offset, self._passes = place.pop("offset"), place.pop("passes")
        counts = self._offset, self._passes, place["documents"]
        is_place = set(place) == {"documents", "reader"} and isinstance(place["reader"], dict)
        if not (is_place and place["reader"]) or any(type(n) is not int or n < 0 for n in counts):
            raise ValueError(f"the position {reprlib.repr(state)} in the data is none")
        self._pending.clear()
        self.documents.seek(place)

    def _place(self) -> dict[str, Any]:
        return {"passes": self._passes, **self.documents.position}

    def _fill(self, count: int) -> None:
        """Read documents until `count` tokens are available; a failure loses none of them."""
        available = sum(len(tokens) for _, tokens in self._pending) - self._offset
        while available < count:
            before = self._place()
            text = self.documents.read()
            if text is None:
                self._passes += 1
                read = self.documents.position["documents"]
                print(f"All {read:,} documents are read: starting again.", flush=True)
                self.documents.rewind()
            elif text and not is_held_out(text, self.config.data.held_out):
                tokens = [*self.corpus.tokenizer.encode(text), *self.corpus.tokenizer.ends]
                if not self._pending and self._offset >= len(tokens):
                    raise ValueError(
                        f"The run stopped at token {self._offset:,} of a document that has "
                        f"{len(tokens):,}: the data are not those that it was trained on."
                    )
                self._pending.append((before, tokens))
                available += len(tokens)


def load_batches(config: LanguageConfig, state: str | None = None) -> Batches:
    """The batches that a run trains on, with its tokenizer and held-out text.

    Of a data set, only the beginning is read: until there are `max_bytes` to learn tokens from,
    and `eval_tokens` held out.

    Args:
        config: The run.
        state: A tokenizer's state, to use instead of learning one.

    Raises:
        ValueError: The text or data set is missing, cannot be read, or is too short; or the
            folder of tokens is damaged, or of another tokenizer.
    """
    if config.data.shards is not None:
        return load_shards(config, state)
    if config.data.dataset is None:
        return Batches(load_corpus(config, state), config)
    known = None if state is None else load_tokenizer(state, config.data.vocabulary)
    documents = Documents(config)
    tokenizer, held_out = _beginning(documents, config, known)
    documents.rewind()
    corpus = Corpus(tokenizer, torch.empty(0, dtype=torch.long), torch.tensor(held_out))
    return StreamedBatches(corpus, documents, config)


def learn_tokenizer(
    documents: Documents, config: LanguageConfig, known: Tokenizer | None = None
) -> tuple[Tokenizer, list[str]]:
    """Learn a tokenizer, unless it is known, from the first texts, of `max_bytes`.

    Returns:
        The tokenizer, and the held-out texts that were met.

    Raises:
        ValueError: There is no text.
    """
    learns = known is None and config.data.vocabulary > ByteTokenizer.size
    left = config.data.max_bytes if learns else 1
    texts: list[str] = []
    held_out: list[str] = []
    while left > 0 and (text := documents.read()) is not None:
        if text and is_held_out(text, config.data.held_out):
            held_out.append(text)
        elif text:
            texts.append(text.encode()[:left].decode(errors="ignore"))
            left -= len(text.encode())
    if not texts:
        raise ValueError(
            f"The data set {config.data.dataset} has no text to train on in its column "
            f"{config.data.column!r}, in {documents.position['documents']:,} documents."
        )
    return known or train_tokenizer(texts, config.data.vocabulary), held_out


def _beginning(
    documents: Documents, config: LanguageConfig, known: Tokenizer | None
) -> tuple[Tokenizer, list[int]]:
    """Train the tokenizer unless it is known, and read the held-out tokens."""
    tokenizer, held_out = learn_tokenizer(documents, config, known)
    tokens: list[int] = []
    for text in held_out:
        tokens += [*tokenizer.encode(text), *tokenizer.ends]
    while len(tokens) <= config.data.eval_tokens and (text := documents.read()) is not None:
        if text and is_held_out(text, config.data.held_out):
            tokens += [*tokenizer.encode(text), *tokenizer.ends]
    if len(tokens) <= config.data.context:
        raise ValueError(
            f"The held-out documents of {config.data.dataset} have {len(tokens)} tokens, no more "
            f"than one sequence of `context` = {config.data.context}: about "
            f"{config.data.held_out:.0%} of the documents are held out. Give more of them, or "
            "lower `--context`."
        )
    return tokenizer, tokens[: config.data.eval_tokens + 1]


def _address(dataset: str) -> str:
    """Where a data set of this name is published, as a sentence; empty for a path."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", dataset):
        return ""
    return f"It is published at https://huggingface.co/datasets/{dataset}. "


def _open(config: LanguageConfig) -> Any:
    """The data set as an `IterableDataset`, whose state can be kept and restored."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise ValueError(
            "`--dataset` needs the package `datasets`: install the extra with `pip install "
            "'attractor-models[lm-data]'`, or train on files with `--text`."
        ) from error
    path = Path(str(config.data.dataset))
    where, files = (path.parent, [path.name]) if path.is_file() else (config.data.dataset, None)
    try:
        builder = datasets.load_dataset_builder(
            str(where), config.data.dataset_name, data_files=files
        )
        if builder.name == "text":
            builder.config.sample_by = "paragraph"  # type: ignore[attr-defined]
        return builder.as_streaming_dataset(split="train")
    except StopIteration as error:  # from the reader of JSON, of files without a line
        raise ValueError(f"The data set {config.data.dataset} is empty.") from error
    except (OSError, ValueError, DatasetsError) as error:
        name = f" ({config.data.dataset_name})" if config.data.dataset_name else ""
        raise ValueError(
            f"The data set {config.data.dataset}{name} cannot be opened: "
            f"{textwrap.shorten(str(error), 300).rstrip('.')}. {_address(str(config.data.dataset))}"
            "Name a data set of the Hugging Face Hub, or a file or folder of JSON lines, Parquet "
            "or text, with `--dataset` and `--dataset-name`."
        ) from error
