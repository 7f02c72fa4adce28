"""The options of training that every run has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.training.options import Section


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Section):
    """How to train. docs/training.md says more about each option.

    Attributes:
        minutes: Budget in minutes of training time.
        steps: Budget in optimiser steps instead.
        seed: Of weights, data and augmentation.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads; by default torch's choice.
        out: Folder of the run; by default in `runs/`.
        save_every: Seconds between checkpoints.
        checkpoints: One file, or a share per process.
        keep_last: Checkpoints to keep besides the best.
        batch_size: Samples of an optimiser step.
        accumulate: Micro-batches that a batch is split into.
        learning_rate: Peak, reached after `warmup`.
        schedule: Of the rate: falls at once, or late.
        optimizer: "muon": for matrices, AdamW for others.
        warmup: Steps of linear warm-up.
        weight_decay: Of the optimiser.
        clip: Largest gradient norm.
        averaging: Decay of the averaged weights.
        autocast: Networks in bfloat16.
        parallel: How processes share the work.
        checkpoint_activations: Recompute the backbone's.
        compile: Compile the blocks, for some 20 s.
    """

    minutes: float = 8.0
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    out: Path | None = None
    save_every: float = 60.0
    # Not chosen by `parallel`: a file is easier to move, and shares only pay where gathering and
    # writing all of it takes long.
    checkpoints: Literal["file", "sharded"] = "file"
    keep_last: int = 2
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 2e-3
    schedule: Literal["cosine", "trapezoid"] = "cosine"
    optimizer: Literal["adamw", "muon"] = "adamw"
    warmup: int = 50
    weight_decay: float = 0.05
    clip: float = 1.0
    averaging: float = 0.99
    autocast: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    checkpoint_activations: bool = False
    compile: bool = False

    # What the training loop reads of every run. Models whose samples stay in the batch for several
    # segments have options of these names.
    segments = 1
    refill = False
    loss = "softmax"

    def __post_init__(self) -> None:
        for name in ("minutes", "batch_size", "learning_rate", "clip", "save_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)!r}.")
        self.require(1, "steps", "accumulate", "threads")
        self.require(2, "keep_last")
        self.limit(1000, "keep_last", "threads")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"`averaging` must lie in [0, 1), got {self.averaging!r}.")

    def unused(self) -> dict[str, str]:
        """See `Section`."""
        return {} if self.steps is None else {"minutes": "without `--steps`"}
