"""Batches from a folder of tokens: documents in a new order in each pass, and every token once.

Each process reads the rows that are its own. Where a run stands is a pass, a document and an
offset in it, whatever the size of its batches and the number of its processes.
"""

import hashlib
import reprlib

import numpy as np
import torch
from torch import Tensor

from tasks.lm.config import LanguageConfig
from tasks.lm.data import Batches, Corpus
from tasks.lm.shards import Manifest, ShardError, TokenStore, read_tokenizer_file
from tasks.lm.text_data import TextData
from tasks.lm.tokenizer import load_tokenizer

ROUNDS = 8
# Documents whose places are looked up at once, at least.
AHEAD = 4096


class Order:
    """The order of documents in every pass, which depends on the seed and the pass alone.

    The place of a document is enciphered by a Feistel network over the next power of four, and
    again until it is the number of a document. So no table of all documents is needed, and no
    library's generator, whose numbers another version may change.

    Args:
        count: Number of documents.
        seed: Of the run.

    References:
        J. Black, P. Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002, sec. 3 and 4
        (cycle walking, and a Feistel network).
    """

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed
        self._half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """The documents at these places of all passes: the first of the second pass is `count`."""
        passes, places = np.divmod(places, self.count)
        found = np.empty_like(places)
        for number in np.unique(passes).tolist():
            found[passes == number] = self._of_pass(number, places[passes == number])
        return found

    def _of_pass(self, number: int, places: np.ndarray) -> np.ndarray:
        digest = hashlib.sha512(f"{self.seed} {number}".encode()).digest()
        keys = np.frombuffer(digest, "<u8", ROUNDS).astype(np.uint64)
        found = self._enciphered(places.astype(np.uint64), keys)
        while len(outside := np.flatnonzero(found >= self.count)):
            found[outside] = self._enciphered(found[outside], keys)
        return found.astype(np.int64)

    def _enciphered(self, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        for key in keys:
            # A multiplicative hash: its upper half depends on all bits.
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & self._mask)
        return (left << self._half) | right


class ShardedBatches(Batches):
    """The documents of a folder as the training loop sees them.

    The passes follow one another in one row of tokens, which is cut into sequences.
    """

    def __init__(self, corpus: Corpus, store: TokenStore, config: LanguageConfig):
        super().__init__(corpus, config)
        self.store = store
        self.order = Order(store.num_documents, config.train.seed)
        # The place of the next document, counted through all passes, and how many of its tokens
        # are used up.
        self._place, self._offset = 0, 0
        self._forget()

    @property
    def source(self) -> str:
        """See `Batches`."""
        return f"{self.store.num_tokens:,} tokens in {self.config.data.shards}"

    def batch(
        self, size: int, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """See `share`: here, all rows."""
        return self.share(torch.arange(size), size, generator, progress)

    def share(
        self, rows: Tensor, size: int, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Some rows of the next tokens, and the tokens that follow them; see `Task`."""
        context = self.config.data.context
        self._look_ahead(size * context + 1)
        spans = [(run[0] * context, len(run) * context + 1) for run in _runs(rows.tolist())]
        parts = [self._read(first, count) for first, count in spans]
        # Two tensors, which share no memory: the loop overwrites them one by one.
        x, target = (
            torch.from_numpy(
                np.concatenate([np.empty(0, np.int64), *(part[cut] for part in parts)])
            )
            for cut in (slice(None, -1), slice(1, None))
        )
        self._go_on(size * context)
        self._prefetch(spans)
        return x.view(-1, context), target.view(-1, context)

    def state_dict(self) -> dict[str, int]:
        """See `Task`."""
        passes, document = divmod(self._place, self.order.count)
        return {"pass": passes, "document": document, "offset": self._offset}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """See `Task`."""
        names = ("pass", "document", "offset")
        if not isinstance(state, dict) or set(state) != set(names) or any(
            type(number) is not int or not 0 <= number < 2**53 for number in state.values()
        ):  # fmt: skip
            raise ValueError(f"the position {reprlib.repr(state)} in the data is none")
        passes, document, offset = (state[name] for name in names)
        place = passes * self.order.count + document
        if document >= self.order.count or place >= 2**62:
            raise ValueError(f"the position {reprlib.repr(state)} in the data is none")
        if offset >= self.store.lengths(self.order(np.array([place])))[0]:
            raise ValueError(f"the position {reprlib.repr(state)} lies behind its document")
        self._place, self._offset = place, offset
        self._forget()

    def _forget(self) -> None:
        # Documents from `_place` on, and where each begins and ends in the row of their tokens.
        self._documents = np.empty(0, np.int64)
        self._bounds = np.zeros(1, np.int64)

    def _look_ahead(self, count: int) -> None:
        """Find out which documents have the next `count` tokens."""
        mean = self.store.num_tokens / self.store.num_documents
        while (missing := self._offset + count - int(self._bounds[-1])) > 0:
            first = self._place + len(self._documents)
            number = max(int(1.1 * missing / mean) + 16, min(AHEAD, 4 * self.order.count))
            more = self.order(np.arange(first, first + number))
            ends = self._bounds[-1] + np.cumsum(self.store.lengths(more))
            self._documents = np.concatenate([self._documents, more])
            self._bounds = np.concatenate([self._bounds, ends])

    def _holding(self, first: int, count: int) -> slice:
        """Which of the documents ahead have `count` tokens, the first of which is `first`."""
        first += self._offset
        start = int(np.searchsorted(self._bounds, first, side="right")) - 1
        return slice(start, int(np.searchsorted(self._bounds, first + count, side="left")))

    def _read(self, first: int, count: int) -> np.ndarray:
        there = self._holding(first, count)
        skip = self._offset + first - int(self._bounds[there.start])
        return self.store.read(self._documents[there], skip, count).astype(np.int64)

    def _prefetch(self, spans: list[tuple[int, int]]) -> None:
        """Prepare for the same rows of a batch of the same size."""
        self._look_ahead(max((first + count for first, count in spans), default=0))
        for first, count in spans:
            self.store.prefetch(self._documents[self._holding(first, count)])

    def _go_on(self, count: int) -> None:
        passes = self._place // self.order.count
        self._offset += count
        used = int(np.searchsorted(self._bounds, self._offset, side="right")) - 1
        begin = self._bounds[used]
        self._offset -= int(begin)
        self._documents, self._bounds = self._documents[used:], self._bounds[used:] - begin
        self._place += used
        if self._place // self.order.count > passes:
            print(f"All {self.order.count:,} documents are read: starting again.", flush=True)


def _runs(numbers: list[int]) -> list[range]:
    """Rising numbers as ranges, as few as there can be."""
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def open_folder(data: TextData) -> tuple[str, dict[str, TokenStore]]:
    """Open the folder of tokens that a run reads, without reading the tokens.

    Returns:
        The state of its tokenizer, and the documents "training" and "held-out".

    Raises:
        ShardError: The folder is missing or damaged, has the tokens of another vocabulary, or too
            few of them.
    """
    folder = data.shards
    assert folder is not None
    manifest = Manifest.read(folder)
    if manifest.vocabulary != data.vocabulary:
        raise ShardError(
            f"The tokens in {folder} are of a vocabulary of {manifest.vocabulary:,}, and the model "
            f"has one of {data.vocabulary:,}. Train with `--vocabulary {manifest.vocabulary}`, or "
            "prepare another folder."
        )
    state = read_tokenizer_file(folder, manifest)
    stores = {
        name: TokenStore(folder, shards, manifest.vocabulary)
        for name, shards in (("training", manifest.training), ("held-out", manifest.held_out))
    }
    for name, store in stores.items():
        if store.num_tokens <= data.context:
            raise ShardError(
                f"{folder} has {store.num_tokens:,} {name} tokens, no more than one sequence of "
                f"`context` = {data.context}. Prepare a folder of more text, or lower `--context`."
            )
    return state, stores


def load_shards(config: LanguageConfig, state: str | None = None) -> ShardedBatches:
    """The batches of a run that reads a folder of tokens, with its tokenizer and held-out text.

    Args:
        config: The run.
        state: The tokenizer's state of the model that is trained on, or evaluated.

    Raises:
        ShardError: The folder is damaged, or has the tokens of another tokenizer or vocabulary.
    """
    data = config.data
    own, stores = open_folder(data)
    tokenizer = load_tokenizer(own, data.vocabulary)
    if state is not None:
        known = load_tokenizer(state, data.vocabulary)
        if known.to_json() != tokenizer.to_json():
            raise ShardError(
                f"The tokens in {data.shards} were made by another tokenizer than the model's. "
                "Prepare a folder for it with `prepare --tokenizer`, and name the model there."
            )
    corpus = Corpus(
        tokenizer, torch.empty(0, dtype=torch.long), _beginning(stores["held-out"], data)
    )
    return ShardedBatches(corpus, stores["training"], config)


def _beginning(store: TokenStore, data: TextData) -> Tensor:
    """The first tokens that are evaluated on."""
    count = min(data.eval_tokens + 1, store.num_tokens)
    documents = np.arange(np.searchsorted(store.bounds, count, side="left"))
    return torch.from_numpy(store.read(documents, 0, count).astype(np.int64))
