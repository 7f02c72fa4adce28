"""Where the text of a run comes from: the options of its section `data`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tasks.training.options import Section
from tasks.training.reading import Reading

# Options of which a run has at most one; and the values with which it has none.
SOURCES = ("text", "dataset", "shards")
NO_TEXT: dict[str, Any] = dict.fromkeys((*SOURCES, "dataset_name"))
# Where the text of a preset is found: it does not come with the package.
DOWNLOADS = {
    "tinyshakespeare.txt": "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/"
    "tinyshakespeare/input.txt",
}
# Tokens per second of one core: less than `benchmarks/bench_pipeline.py` measures, to be safe.
SHARDS, TOKENISED = 50e6, 0.3e6


@dataclass(frozen=True, kw_only=True)
class TextData(Section):
    """Text to train on, and other text to evaluate on.

    Attributes:
        text: A file or folder; by default Python's sources.
        dataset: Instead: a data set to stream.
        shards: Instead: a folder that `prepare` wrote.
        dataset_name: Its configuration, if it has several.
        column: Its column of texts.
        max_bytes: No more text than that.
        vocabulary: Tokens: 257 for bytes, more are learned.
        context: Tokens of a sequence in training.
        held_out: Share of the texts, or the end of one, to evaluate on.
        eval_tokens: Held-out tokens to evaluate on.
    """

    paths: ClassVar[tuple[str, ...]] = ("text", "shards")
    listed: ClassVar[dict[str, str]] = {"shards": "manifest.json"}

    text: Path | None = None
    dataset: str | None = None
    shards: Path | None = None
    dataset_name: str | None = None
    column: str = "text"
    max_bytes: int = 8_000_000
    vocabulary: int = 1024
    context: int = 256
    held_out: float = 0.05
    eval_tokens: int = 50_000

    def __post_init__(self) -> None:
        self.require(1, "context", "eval_tokens")
        if not 0 < self.held_out < 1:
            raise ValueError(f"`held_out` must be between 0 and 1, got {self.held_out!r}.")
        if self.dataset is None and self.dataset_name is not None:
            raise ValueError(
                f"`dataset_name` is {self.dataset_name!r}, but no `dataset` is named that would "
                "have such a configuration."
            )
        named = [f"`{n}` ({v})" for n in SOURCES if (v := getattr(self, n)) is not None]
        if len(named) > 1:
            raise ValueError(f"Both {named[0]} and {named[1]} are named: drop one.")
        if self.vocabulary < 257:
            raise ValueError(
                f"`vocabulary` must be at least 257 (bytes and an end of text), got "
                f"{self.vocabulary!r}."
            )

    def unused(self) -> dict[str, str]:
        """See `Section`."""
        if self.shards is not None:
            names = ("dataset_name", "column", "max_bytes", "held_out")
            return dict.fromkeys(names, "without `--shards`; `prepare` has it too")
        if self.dataset is None:
            return dict.fromkeys(("dataset_name", "column"), "with `--dataset`")
        if self.vocabulary == 257:
            return {"max_bytes": "with `--text`, or with a `--vocabulary` above 257"}
        return {}

    def reading(self) -> Reading | None:
        """See `Section`; text without a data set is in memory as tokens."""
        if self.shards is not None:
            return Reading("Prepared tokens, each process its own rows", SHARDS, own_rows=True)
        if self.dataset is not None:
            return Reading("A stream, tokenised by each process", TOKENISED, own_rows=False)
        return None
