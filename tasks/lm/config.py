"""The options of a language-model run, and its presets."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import tyro

from implicit import Phantom, get_backward
from implicit.base import BackwardMode
from models import AttractorLM, LanguageSpec, ParcaeLM, Start, TransformerLM
from models.language import Injection, Mixer
from solvers import FixedPointSolver, get_solver
from tasks.training.config import TrainConfig

ModelName = Literal["attractor", "transformer", "parcae", "deq"]
Hidden = tyro.conf.Suppress


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageConfig(TrainConfig):
    """Train a language model on text, then evaluate it on text held out.

    Attributes:
        text: A file or folder of text; by default the Python standard library's own sources
            and documentation, which are on every machine.
        dataset: In place of `text`, a data set that is read as it is needed: a name on the
            Hugging Face Hub, or a file or folder of JSON lines, Parquet or text.
        dataset_name: Which of its configurations, for a data set that has several.
        column: Which of its columns has the texts.
        max_bytes: No more text than that; of a data set, what the tokens are learned from.
        vocabulary: Tokens: 257 for bytes and an end of text, more for byte-pair encoding
            trained on the text.
        context: Tokens that a sequence has in training.
        eval_tokens: Held-out tokens to evaluate on.
        model: "attractor": a backbone proposes, a refiner is solved. Baselines of as many
            parameters: "transformer", "parcae" (a loop of drawn length), "deq" (the
            equilibrium of a hidden state, without a proposal).
        width: Numbers per token.
        num_heads: Heads of the attention.
        mixer: What the backbone is made of, and the baselines: our blocks with "attention", "scan"
            (a state-space model's recurrence) or "gru"; or "gpt2" or "llama", of the package
            `transformers`.
        backbone_blocks: Blocks that make the proposal.
        refiner_blocks: Blocks of the map that is solved.
        injection: How the refiner sees the proposal; see `models.LanguageSpec`.
        start: Where the solve starts.
        tied: Decode with the embedding.
        loops: Mean loops of "parcae" in training, and their number otherwise.
        coda_blocks: Of the backbone's blocks, those that "parcae" has after its loop.
        solver: Registered solver name.
        backward: Registered backward mode.
        history: Window of the solver, for solvers that have one.
        rtol: Relative residual at which a token counts as solved for; in training with
            `autocast` no less than 8e-3, the precision of bfloat16.
        free_steps: Solver updates in training, at most.
        recorded_steps: Recorded updates of the phantom gradient.
        eval_steps: Budget of solver updates in evaluation; 0 decodes the proposal.
    """

    paths: ClassVar[tuple[str, ...]] = ("out", "text")
    unit: ClassVar[str] = "token"

    text: Path | None = None
    dataset: str | None = None
    dataset_name: str | None = None
    column: str = "text"
    max_bytes: int = 8_000_000
    vocabulary: int = 1024
    context: int = 256
    eval_tokens: int = 50_000
    model: ModelName = "attractor"
    width: int = 128
    num_heads: int = 2
    mixer: Mixer = "attention"
    backbone_blocks: int = 11
    refiner_blocks: int = 1
    injection: Injection = "additive"
    start: Start = "proposal"
    tied: bool = True
    loops: int = 8
    coda_blocks: int = 1
    solver: str = "anderson"
    backward: str = "jacobian_free"
    history: int = 5
    rtol: float = 3e-4
    free_steps: int = 64
    recorded_steps: int = 4
    eval_steps: int = 64
    batch_size: int = 16
    learning_rate: float = 8e-3
    schedule: Literal["cosine", "trapezoid"] = "trapezoid"
    optimizer: Literal["adamw", "muon"] = "muon"
    warmup: int = 20
    weight_decay: float = 0.01
    averaging: float = 0.95
    # What puzzles have and texts have not.
    segments: Hidden[int] = 1
    refill: Hidden[bool] = False
    halting: Hidden[bool] = False
    loss: Hidden[Literal["softmax", "stablemax"]] = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.build_solver()
        get_backward(self.backward)
        for name in ("eval_steps", "coda_blocks"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)!r}.")
        for name in ("context", "eval_tokens", "loops", "recorded_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)!r}.")
        if self.dataset is None and self.dataset_name is not None:
            raise ValueError(
                f"`dataset_name` is {self.dataset_name!r}, but no `dataset` is named that would "
                "have such a configuration."
            )
        if self.dataset is not None and self.text is not None:
            raise ValueError(
                f"Both `text` ({self.text}) and `dataset` ({self.dataset}) are named: drop one."
            )
        if self.vocabulary < 257:
            raise ValueError(
                f"`vocabulary` must be at least 257 (bytes and an end of text), got "
                f"{self.vocabulary!r}."
            )
        self.spec()

    @property
    def length(self) -> int:
        """Number of inputs in a row of the batch."""
        return self.context

    @property
    def units_per_sample(self) -> int:
        """Number of tokens in a row of the batch."""
        return self.context

    @property
    def train_steps(self) -> int:
        """Most solver updates in training; for "parcae", the expected number of loops."""
        return self._longest_loop if self.model == "parcae" else self.free_steps

    @property
    def _longest_loop(self) -> int:
        """Expected largest draw of a batch, whose sequences all loop as long; see `ParcaeLM`."""
        below = torch.special.gammaincc(
            torch.arange(1.0, 2 * self.loops), torch.tensor(self.loops - 1.0)
        )
        return 1 + round(float((1 - below**self.batch_size).sum()))

    def spec(self) -> LanguageSpec:
        """The shape of the model."""
        deq = self.model == "deq"
        blocks = self.backbone_blocks + self.refiner_blocks
        return LanguageSpec(
            vocabulary=self.vocabulary,
            width=self.width,
            num_heads=self.num_heads,
            mixer=self.mixer,
            context=self.context,
            backbone_blocks=0 if deq else self.backbone_blocks,
            refiner_blocks=blocks if deq else self.refiner_blocks,
            injection=self.injection,
            start="zeros" if deq else self.start,
            tied=self.tied,
        )

    def build(self) -> AttractorLM | TransformerLM | ParcaeLM:
        """The model, with fresh weights."""
        if self.model == "transformer":
            return TransformerLM(self.spec())
        if self.model == "parcae":
            return ParcaeLM(self.spec(), self.loops, coda=self.coda_blocks)
        return AttractorLM(self.spec(), self.build_solver(), self.build_backward(), self.eval_steps)

    def build_solver(self, name: str | None = None) -> FixedPointSolver:
        """The solver, with this run's tolerance and, where it has one, window."""
        name = name or self.solver
        options: dict[str, Any] = {"rtol": self.rtol}
        if hasattr(get_solver(name), "history"):
            options["history"] = self.history
        return get_solver(name, **options)

    def build_backward(self) -> BackwardMode:
        """The backward mode, with the options of this run."""
        mode = get_backward(self.backward)
        if isinstance(mode, Phantom):
            return dataclasses.replace(mode, steps=self.recorded_steps)
        return mode


def _published(width: int, heads: int, blocks: int, billions: float) -> LanguageConfig:
    """A published recipe and size: arXiv:2605.12466, sec. 4 and app.

    The paper gives width, heads and depth of the smallest one alone. The others widen by 512
    and deepen until they have the parameters of their name, and see as many tokens for each.
    The learning rate is ours, and was not tuned at these sizes.

    Args:
        width: Numbers per token.
        heads: Of 128 numbers each.
        blocks: Of the backbone.
        billions: Of tokens to train on.
    """
    batch, context = 256, 2048
    return LanguageConfig(
        dataset="HuggingFaceFW/fineweb-edu",
        vocabulary=32_768,
        context=context,
        width=width,
        num_heads=heads,
        backbone_blocks=blocks,
        batch_size=batch,
        steps=round(billions * 1e9 / (batch * context)),
        learning_rate=2e-3,
        warmup=1,
        averaging=0.99,
        max_bytes=200_000_000,
        eval_tokens=10_485_760,
        autocast=True,
        compile=True,
    )


PRESETS: dict[str, LanguageConfig] = {
    "tiny": LanguageConfig(
        minutes=0.5, threads=1, width=64, num_heads=4, backbone_blocks=1, vocabulary=257,
        context=64, max_bytes=1_000_000, eval_tokens=8192,
    ),
    "mini": LanguageConfig(
        minutes=1.5, threads=1, width=64, num_heads=4, backbone_blocks=1, vocabulary=512,
        context=64, eval_tokens=32_768,
    ),
    "small": LanguageConfig(),
    "140m": _published(1024, 8, 7, 11.2),
    "370m": _published(1536, 12, 10, 29.6),
    "770m": _published(2048, 16, 13, 61.6),
    "1.3b": _published(2560, 20, 15, 104.0),
}  # fmt: skip
DEFAULT_PRESET = "small"
