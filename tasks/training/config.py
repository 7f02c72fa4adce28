"""The options that every training run has."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; a task adds what to train on.

    Attributes:
        minutes: Training budget in minutes of wall time, without looks at held-out data; the
            learning rate follows it.
        steps: Budget in optimiser steps. If set, it alone drives the schedule, so that an
            interrupted and resumed run repeats the uninterrupted one exactly.
        seed: Seed of the weights, the data and the augmentation.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        threads: CPU threads; by default as many as torch chooses. One is best for tiny tensors.
        out: Folder for checkpoints, log, pictures and result; by default a new one in `runs/`.
        save_every: Seconds between checkpoints.
        checkpoints: "file": one, which the first process gathers and writes while training waits.
            "sharded": a folder; each process writes its share while training goes on.
        keep_last: Newest checkpoints to keep, besides the best one, at least 2: a damaged one
            is replaced by the one before.
        batch_size: Puzzles per batch.
        accumulate: Micro-batches that a process takes its share of a batch in, one after the
            other: less memory for the same gradient.
        segments: Supervised segments per sample: each ends in a loss and an optimiser step,
            and hands its detached state to the next.
        refill: A solved sample leaves the batch at once, and a new one takes its place.
        learning_rate: Peak; reached after `warmup` steps, left as `schedule` says.
        schedule: "cosine": at once, to 1 % of the peak. "trapezoid": in the last half, in a
            straight line.
        optimizer: "adamw", or "muon" for the matrices and AdamW for the rest.
        warmup: Optimiser steps of linear warm-up.
        weight_decay: The optimiser's.
        clip: Largest gradient norm.
        averaging: Decay of the averaged weights, which evaluation uses; less in the first steps.
        loss: "softmax" or "stablemax" cross-entropy.
        halting: Also learn to tell right answers from wrong ones. With `refill`, that verdict
            decides which samples leave, as published for TRM and HRM.
        autocast: Run networks in bfloat16; residuals and coefficients stay in float32.
        parallel: How processes of `torchrun` share the work. "ddp": each has all weights. "fsdp":
            each has a share of them. One process alone needs neither.
        checkpoint_activations: Compute what the backbone's blocks leave for the backward pass
            anew in it: less memory for the same gradient, and one more forward pass of them.
        compile: Compile the blocks in training, for some 20 s; on a CPU it needs a C++ compiler.
    """

    paths: ClassVar[tuple[str, ...]] = ("out",)

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
    segments: int = 4
    refill: bool = False
    learning_rate: float = 2e-3
    schedule: Literal["cosine", "trapezoid"] = "cosine"
    optimizer: Literal["adamw", "muon"] = "adamw"
    warmup: int = 50
    weight_decay: float = 0.05
    clip: float = 1.0
    averaging: float = 0.99
    loss: Literal["softmax", "stablemax"] = "softmax"
    halting: bool = False
    autocast: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    checkpoint_activations: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("minutes", "batch_size", "segments", "learning_rate", "clip", "save_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)!r}.")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps!r}.")
        if self.keep_last < 2:
            raise ValueError(f"`keep_last` must be at least 2, got {self.keep_last!r}.")
        if self.accumulate < 1:
            raise ValueError(f"`accumulate` must be at least 1, got {self.accumulate!r}.")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"`threads` must be at least 1, got {self.threads!r}.")
        if self.parallel not in ("ddp", "fsdp"):
            raise ValueError(f"`parallel` must be 'ddp' or 'fsdp', got {self.parallel!r}.")
        if self.checkpoints not in ("file", "sharded"):
            raise ValueError(
                f"`checkpoints` must be 'file' or 'sharded', got {self.checkpoints!r}."
            )
        if not 0 <= self.averaging < 1:
            raise ValueError(f"`averaging` must lie in [0, 1), got {self.averaging!r}.")

    def to_json(self) -> dict[str, Any]:
        """The options as JSON values."""
        values = dataclasses.asdict(self)
        return values | {name: str(values[name]) for name in self.paths if values[name]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Undo `to_json`; options that are missing take their defaults.

        Raises:
            ValueError: An option that this version does not have.
        """
        unknown_names = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown_names:
            raise ValueError(f"it has the options {', '.join(sorted(unknown_names))}")
        paths: dict[str, Any] = {n: Path(values[n]) for n in cls.paths if values.get(n)}
        return cls(**values | paths)
