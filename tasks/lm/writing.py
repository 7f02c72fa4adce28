"""Trained language models in Python: `tasks.lm.load().generate("def ")`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, overload

import torch

from solvers.checks import check_integer
from solvers.registry import unknown
from tasks.lm.config import LanguageConfig, LanguageTask
from tasks.lm.generate import Sampling, generate
from tasks.lm.tokenizer import END, Tokenizer, read_tokenizer
from tasks.runs import load_model, locate, read_checkpoint
from tasks.training.values import check_texts

# Prompts that are continued together.
BATCH = 32


class Writer:
    """A trained language model with its tokenizer.

    Args:
        model: In evaluation mode.
        config: What it was trained with.
        tokenizer: What it was trained with.
        path: Where it comes from.

    Attributes:
        path: See above.
    """

    def __init__(self, model: Any, config: LanguageConfig, tokenizer: Tokenizer, path: Path):
        self.model, self.config, self.tokenizer, self.path = model, config, tokenizer, path

    def __repr__(self) -> str:
        return f"<{self.config.model.name} language model from {self.path}>"

    @overload
    def generate(  # pyright: ignore[reportOverlappingOverload]
        self, prompts: str, *, tokens: int = 200, max_steps: int | None = None, **sampling: Any
    ) -> str: ...

    @overload
    def generate(
        self, prompts: Iterable[str], *, tokens: int = 200, max_steps: int | None = None,
        **sampling: Any,
    ) -> Iterator[str]: ...  # fmt: skip

    def generate(
        self, prompts: str | Iterable[str], *, tokens: int = 200, max_steps: int | None = None,
        **sampling: Any,
    ) -> str | Iterator[str]:  # fmt: skip
        """Go on with one text, or with any number of them.

        Args:
            prompts: A text, or an iterable of them, of which a batch at a time is read.
            tokens: How many to draw.
            max_steps: Budget of solver updates per token; by default the model's.
            **sampling: `temperature`, `top_k`, `top_p` and `seed`; see `Sampling`.

        Returns:
            The prompt and what follows it, or an iterator over these in order.

        Raises:
            ValueError: An option is of another type, or out of its range.
            TypeError: There is no such option, or something else came than text.
        """
        check_texts("prompts", prompts)
        check_integer("tokens", tokens, 1)
        names = [field.name for field in dataclasses.fields(Sampling)]
        for name in sampling.keys() - set(names):
            every = ["tokens", "max_steps", *names]
            raise TypeError(unknown("option of `generate`", name, every, "Options"))
        how = Sampling(**sampling)
        if isinstance(prompts, str):
            (text,) = self._written([prompts], tokens, max_steps, how)
            return text
        return self._stream(_texts(prompts), tokens, max_steps, how)

    def _stream(
        self, prompts: Iterator[str], tokens: int, max_steps: int | None, how: Sampling
    ) -> Iterator[str]:
        while batch := list(itertools.islice(prompts, BATCH)):
            yield from self._written(batch, tokens, max_steps, how)

    def _written(
        self, texts: list[str], tokens: int, max_steps: int | None, how: Sampling
    ) -> list[str]:
        drawn = generate(
            self.model,
            [[END, *self.tokenizer.encode(text)] for text in texts],
            tokens=tokens,
            context=self.config.data.context,
            sampling=how,
            max_steps=max_steps,
        )
        rows = torch.stack(list(drawn), 1).tolist()
        return [t + self.tokenizer.decode(row) for t, row in zip(texts, rows, strict=True)]


def _texts(prompts: Iterable[str]) -> Iterator[str]:
    """The prompts, each of which must be a text."""
    for number, text in enumerate(prompts, 1):
        if not isinstance(text, str):
            raise TypeError(
                f"Prompt {number} of the iterable must be text: got {type(text).__name__}."
            )
        yield text


def load(name: str | Path, *, device: str = "auto") -> Writer:
    """A trained model, ready to write.

    Args:
        name: A model that comes with the package, the folder of a run, or a checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        CheckpointError: There is no such model, or its file is damaged.
        TypeError: The name is neither text nor a path.
        ValueError: Unknown device, or a package is missing that the model's tokens need.
    """
    task = LanguageTask()
    path = locate(task.name, name)
    checkpoint = read_checkpoint(path)
    model, config = load_model(task, checkpoint, device=device)
    return Writer(model, config, read_tokenizer(checkpoint, config), path)
