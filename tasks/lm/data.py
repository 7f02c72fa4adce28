"""Text to train on and held out, its tokens, and batches of them for the training loop."""

import dataclasses
import hashlib
import math
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models import LanguageModel
from tasks.distributed import ALONE, Group
from tasks.lm.config import LanguageConfig
from tasks.lm.text_data import DOWNLOADS
from tasks.lm.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from tasks.output import SILENT, Progress, decimal
from tasks.training.task import Task

MIN_BYTES = 10_000


def read_texts(source: Path | None, max_bytes: int) -> list[str]:
    """The texts of a file, of all files of a folder, or of the standard library, shuffled.

    The order, and with it what `max_bytes` cuts off, depends on the files alone.

    Args:
        source: A UTF-8 file, or a folder whose text files are read; None: the library.
        max_bytes: Stop after so many.

    Raises:
        ValueError: No such source, bytes that are not UTF-8, or too little text.
    """
    paths = text_files(source)
    Random(0).shuffle(paths)
    texts, left = [], max_bytes
    for path in paths:
        text = _read(path, strict=source is not None)
        if text:
            texts.append(text.encode()[:left].decode(errors="ignore"))
            left -= len(texts[-1].encode())
        if left <= 0:
            break
    total = sum(len(text.encode()) for text in texts)
    if total < MIN_BYTES:
        where = source or "the standard library"
        raise ValueError(
            f"{where} has {total:,} bytes of text, too few to train on: at least {MIN_BYTES:,} "
            "are needed."
        )
    return texts


def text_files(source: Path | None) -> list[Path]:
    """The files in which `read_texts` looks for text.

    Raises:
        ValueError: No such source.
    """
    if source is None:
        return _library()
    if source.is_dir():
        return sorted(path for path in source.rglob("*") if path.is_file())
    if source.is_file():
        return [source]
    known = DOWNLOADS.get(source.name)
    where = f" Download it from {known} to there, or name" if known else " Name"
    raise ValueError(f"There is no text at {source}.{where} a file or a folder with `--text`.")


def split(texts: list[str], share: float) -> tuple[list[str], list[str]]:
    """Split texts into training and held-out ones: by their hash, or at the end of few texts.

    No text is in both, whatever the order, also if it occurs twice.

    Args:
        texts: The texts.
        share: About so much of them is held out.
    """
    if len(texts) < 40:
        whole = "\n".join(texts)
        cut = int(len(whole) * (1 - share))
        return [whole[:cut]], [whole[cut:]]
    train, held_out = [], []
    for text in texts:
        (held_out if is_held_out(text, share) else train).append(text)
    return train, held_out


def is_held_out(text: str, share: float) -> bool:
    """Whether a text is never trained on; its hash alone decides."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < share


def _library() -> list[Path]:
    folder = Path(sysconfig.get_path("stdlib"))
    parts = [".", "asyncio", "collections", "concurrent", "ctypes", "email", "html", "http",
             "importlib", "json", "logging", "multiprocessing", "pydoc_data", "unittest",
             "urllib", "xml", "xmlrpc", "zoneinfo"]  # fmt: skip
    return sorted(path for part in parts for path in (folder / part).glob("*.py"))


def _read(path: Path, strict: bool) -> str:
    try:
        return path.read_text(encoding="utf-8").removeprefix("\ufeff")  # a byte order mark
    except UnicodeDecodeError as error:
        if not strict:
            return ""
        raise ValueError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}. "
            "Convert it, or name other files with `--text`."
        ) from error


VALIDATION_TOKENS = 8192
# Logits of more at a time would not fit, of a vocabulary of usual size.
TOKENS_AT_ONCE = 8192


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The tokens of a text, for training and held out.

    Attributes:
        tokenizer: The tokenizer that made them.
        train: Shape (tokens,), int64: the texts, each followed by an end of text. Empty where
            they are read as they are needed; see `tasks.lm.stream`.
        held_out: The held-out texts in the same form.
    """

    tokenizer: Tokenizer
    train: Tensor
    held_out: Tensor

    @property
    def validated(self) -> str:
        """On how much of the held-out text the validations of a run are, in words."""
        return f"{min(len(self.held_out) - 1, VALIDATION_TOKENS):,} tokens"


def load_corpus(config: LanguageConfig, state: str | None = None) -> Corpus:
    """Read and split the text, learn a tokenizer from the training part, and encode both.

    Args:
        config: Where the text is, and how large the vocabulary.
        state: A tokenizer's state, to use instead of learning one.

    Raises:
        ValueError: The text is missing, not UTF-8 or too short, or `tokenizers` is.
    """
    known = None if state is None else load_tokenizer(state, config.data.vocabulary)
    train, held_out = split(
        read_texts(config.data.text, config.data.max_bytes), config.data.held_out
    )
    tokenizer = known or train_tokenizer(train, config.data.vocabulary)
    sets = [encode(tokenizer, texts) for texts in (train, held_out)]
    for name, tokens in zip(("training", "held-out"), sets, strict=True):
        if len(tokens) <= config.data.context:
            raise ValueError(
                f"The {name} text has {len(tokens)} tokens, no more than one sequence of "
                f"`context` = {config.data.context}. Give more text, or lower `--context`."
            )
    return Corpus(tokenizer, *sets)


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """The tokens of all texts in one row, each text followed by an end-of-text token."""
    tokens: list[int] = []
    for text in texts:
        tokens += [*tokenizer.encode(text), *tokenizer.ends]
    return torch.tensor(tokens, dtype=torch.long)


class Batches(Task):
    """A corpus as the training loop sees it: sequences from random places of the text."""

    def __init__(self, corpus: Corpus, config: LanguageConfig):
        self.corpus, self.config = corpus, config

    @property
    def source(self) -> str:
        """A description of the training data for messages."""
        return f"{len(self.corpus.train):,} tokens"

    def batch(
        self, size: int, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Tokens and the tokens that follow them, both of shape (size, context)."""
        tokens, context = self.corpus.train, self.config.data.context
        starts = torch.randint(len(tokens) - context, (size,), generator=generator)
        rows = tokens[starts[:, None] + torch.arange(context + 1)]
        return rows[:, :-1], rows[:, 1:]

    def validate(self, model: LanguageModel) -> dict[str, float]:
        """See `Task`: loss of the first held-out tokens, and metrics of the solves."""
        found = measure(model, self.corpus, self.config, limit=VALIDATION_TOKENS)
        names = {"bits_per_byte": "test_bits", "mean_steps": "test_steps"}
        names |= {"loss": "test_loss", "distance": "test_distance"}
        return {shown: found[name] for name, shown in names.items() if name in found}

    def selection_score(self, validation: dict[str, float]) -> float:
        """See `Task`: fewer bits are better."""
        return -validation["test_bits"]

    def metrics(self, right: Tensor) -> dict[str, float]:
        """See `Task`: here, how often the next token was the most likely one."""
        return {"token_accuracy": right.double().mean().item()}


@torch.no_grad()
def measure(
    model: Any, corpus: Corpus, config: LanguageConfig, *,
    limit: int | None = None, max_steps: int | None = None, group: Group = ALONE,
    progress: Progress = SILENT,
) -> dict[str, Any]:  # fmt: skip
    """Loss on held-out text, in consecutive windows, and metrics of the solves.

    Args:
        model: The model.
        corpus: Its text.
        config: The run: windows of `context` tokens, as many at a time as in a micro-batch, or
            fewer if they are long.
        limit: So many tokens, from the start; by default `eval_tokens`.
        max_steps: Budget of solver updates, or loops; by default the model's.
        group: Processes that share the windows; all of them call this, and get the same.
        progress: Told of each batch.

    Returns:
        `loss` (nats per token), `perplexity`, `bits_per_byte` (ends of text cost bits, and are
        no bytes), `tokens`, and where a solver ran `converged`, `mean_steps`,
        `median_residual` (relative to the state) and `distance` (mean of |y0 - y*| / |y*|).
    """
    was_training = model.training
    model.eval()
    device, context = next(model.parameters()).device, config.data.context
    wanted = min(limit or config.data.eval_tokens, len(corpus.held_out) - 1)
    windows = max(wanted // context, 1)
    used = corpus.held_out[: windows * context + 1]
    x, target = used[:-1].view(windows, context), used[1:].view(windows, context)
    in_batch = config.train.batch_size // config.train.accumulate
    at_once = max(1, min(in_batch, TOKENS_AT_ONCE // context))
    nats, solved = 0.0, []
    batches = list(zip(x.split(at_once), target.split(at_once), strict=True))
    mine = batches[group.rank :: group.size]
    budget = "" if max_steps is None else f", at most {max_steps} steps"
    progress.begin(f"loss on {windows * context:,} held-out tokens{budget}", len(mine))
    for rows, right in mine:
        out = model(rows.to(device), max_steps=max_steps)
        logits = out.logits.flatten(0, 1).float()
        nats += F.cross_entropy(logits, right.flatten().to(device), reduction="sum").item()
        if out.solution is not None and out.solution.num_evals:
            found, state, proposal = out.solution, out.state.float(), out.proposal.float()
            scale = state.square().mean(-1).sqrt()
            distance = (proposal - state).norm(dim=-1) / state.norm(dim=-1)
            parts = found.converged, found.num_steps, found.residual / scale, distance
            solved.append([part.flatten().cpu() for part in parts])
        progress.advance()
    model.train(was_training)
    shares = group.gather((nats, solved))
    nats, solved = sum(share[0] for share in shares), [each for _, rest in shares for each in rest]
    tokens = windows * context
    num_bytes = len(corpus.tokenizer.decode(used[1:].tolist()).encode())
    figures = {
        "loss": nats / tokens,
        "perplexity": math.exp(min(nats / tokens, 700.0)),
        "bits_per_byte": nats / math.log(2) / num_bytes,
        "tokens": tokens,
    }
    if solved:
        converged, steps, residual, distance = map(torch.cat, zip(*solved, strict=True))
        figures |= {
            "converged": converged.double().mean().item(),
            "mean_steps": steps.double().mean().item(),
            "median_residual": decimal(residual.float().median()),
            "distance": decimal(distance.float().mean()),
        }
    return figures
