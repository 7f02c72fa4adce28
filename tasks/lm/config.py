"""The options of a language-model run, and its presets."""

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch

from implicit import Phantom, get_backward
from implicit.base import BackwardMode
from models import AttractorLM, LanguageSpec, ParcaeLM, Start, TransformerLM
from models.language import Injection, Mixer
from solvers import FixedPointSolver, get_solver
from tasks.lm.text_data import NO_TEXT, SOURCES, TextData
from tasks.training.options import Config, Kind, NoSolve, Section, TrainOptions

ModelName = Literal["attractor", "transformer", "parcae", "deq"]
LanguageModule = AttractorLM | TransformerLM | ParcaeLM
# Mixers that have no heads.
RECURRENT = ("scan", "gru")


@dataclass(frozen=True, kw_only=True)
class Network(Section):
    """The shape of any model; see `models.LanguageSpec`.

    Attributes:
        width: Numbers per token.
        num_heads: Heads of the attention.
        backbone_blocks: Blocks that make the proposal.
        refiner_blocks: Blocks that are solved.
        tied: Decode with the embedding.
    """

    name: ClassVar[ModelName]

    width: int = 128
    num_heads: int = 2
    backbone_blocks: int = 11
    refiner_blocks: int = 1
    tied: bool = True

    def shape(self) -> dict[str, Any]:
        """The options of `LanguageSpec`."""
        names = {field.name for field in dataclasses.fields(LanguageSpec)}
        return {name: getattr(self, name) for name in self.names() if name in names}

    @abstractmethod
    def build(self, spec: LanguageSpec, solve: Any) -> LanguageModule:
        """The model, with fresh weights."""


@dataclass(frozen=True, kw_only=True)
class Transformer(Network):
    """As many blocks as an attractor has, each used once.

    Attributes:
        mixer: What the blocks are made of.
    """

    name: ClassVar[ModelName] = "transformer"

    mixer: Mixer = "attention"

    def unused(self) -> dict[str, str]:
        """See `Section`."""
        return {"num_heads": "with `--mixer attention`"} if self.mixer in RECURRENT else {}

    def build(self, spec: LanguageSpec, solve: Any) -> LanguageModule:
        """See `Network`."""
        return TransformerLM(spec)


@dataclass(frozen=True, kw_only=True)
class Parcae(Transformer):
    """A loop of drawn length.

    Attributes:
        loops: Mean in training; their number otherwise.
        coda_blocks: Of the backbone, those after the loop.
    """

    name: ClassVar[ModelName] = "parcae"

    loops: int = 8
    coda_blocks: int = 1

    def __post_init__(self) -> None:
        self.require(0, "coda_blocks")
        self.require(1, "loops", most=1000)

    def build(self, spec: LanguageSpec, solve: Any) -> LanguageModule:
        """See `Network`."""
        return ParcaeLM(spec, self.loops, coda=self.coda_blocks)


@dataclass(frozen=True, kw_only=True)
class Solved(Network):
    """A refiner is solved.

    Attributes:
        injection: How the refiner sees the proposal.
    """

    injection: Injection = "additive"

    def build(self, spec: LanguageSpec, solve: Any) -> LanguageModule:
        """See `Network`."""
        return AttractorLM(
            spec, solve.evaluation_solver(), solve.backward_mode(), solve.eval_max_steps
        )


@dataclass(frozen=True, kw_only=True)
class Deq(Solved):
    """The equilibrium of a hidden state, from zeros: all blocks are the refiner's."""

    name: ClassVar[ModelName] = "deq"

    def shape(self) -> dict[str, Any]:
        """See `Network`."""
        blocks = self.backbone_blocks + self.refiner_blocks
        return {
            **super().shape(), "start": "zeros", "backbone_blocks": 0, "refiner_blocks": blocks
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Attractor(Solved):
    """A backbone proposes the state of every token, and a refiner is solved.

    Attributes:
        mixer: What the backbone is made of.
        start: Where the solve starts.
    """

    name: ClassVar[ModelName] = "attractor"

    mixer: Mixer = "attention"
    start: Start = "proposal"

    def unused(self) -> dict[str, str]:
        """See `Section`."""
        return {} if self.backbone_blocks else {"mixer": "with `--backbone-blocks` above 0"}


@dataclass(frozen=True, kw_only=True)
class Solve(Section):
    """Any solver and any backward mode.

    Attributes:
        solver: Registered solver.
        backward: Registered backward mode.
        history: Window of the solver.
        rtol: Relative residual of a solved token.
        train_max_steps: Solver updates in training, at most.
        recorded_steps: Recorded updates after them.
        eval_max_steps: In evaluation; 0 leaves the proposal.
    """

    solver: str = "anderson"
    backward: str = "jacobian_free"
    history: int = 5
    rtol: float = 3e-4
    train_max_steps: int = 64
    recorded_steps: int = 4
    eval_max_steps: int = 64

    def __post_init__(self) -> None:
        self.require(0, "eval_max_steps")
        self.require(1, "recorded_steps")
        self.require(0, "history", most=1000)
        self.evaluation_solver()
        self.backward_mode()

    def unused(self) -> dict[str, str]:
        """See `Section`."""
        found = {}
        if not hasattr(get_solver(self.solver), "history"):
            found["history"] = "with solvers that have a window, such as `--solver anderson`"
        if not isinstance(get_backward(self.backward), Phantom):
            found["recorded_steps"] = "with `--backward phantom`"
        return found

    @property
    def train_steps(self) -> int:
        """Solver updates in training, at most."""
        return self.train_max_steps

    def evaluation_solver(self, name: str | None = None) -> FixedPointSolver:
        """The solver, or another one by name, with this run's tolerance and window."""
        name = name or self.solver
        options: dict[str, Any] = {"rtol": self.rtol}
        if hasattr(get_solver(name), "history"):
            options["history"] = self.history
        return get_solver(name, **options)

    def backward_mode(self) -> BackwardMode:
        """The backward mode, with the options of this run."""
        mode = get_backward(self.backward)
        if isinstance(mode, Phantom):
            return dataclasses.replace(mode, steps=self.recorded_steps)
        return mode


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(Config):
    """Train a language model on text, then evaluate it on text held out."""

    kinds: ClassVar[dict[str, Kind]] = {
        "attractor": Kind(Attractor, Solve, TrainOptions),
        "transformer": Kind(Transformer, NoSolve, TrainOptions),
        "parcae": Kind(Parcae, NoSolve, TrainOptions),
        "deq": Kind(Deq, Solve, TrainOptions),
    }
    data_type: ClassVar[type[TextData]] = TextData
    defaults: ClassVar[dict[str, Any]] = {
        "model": "attractor",
        "batch_size": 16,
        "learning_rate": 8e-3,
        "schedule": "trapezoid",
        "optimizer": "muon",
        "warmup": 20,
        "weight_decay": 0.01,
        "averaging": 0.95,
    }
    dropped: ClassVar[frozenset[str]] = frozenset({"segments", "refill", "halting", "loss"})
    unit: ClassVar[str] = "token"

    data: TextData

    def __post_init__(self) -> None:
        self.spec()

    def changed(self, **options: Any) -> Self:
        """See `Config`; a source of text takes the place of the one that there is."""
        named = any(options.get(name) is not None for name in SOURCES)
        return self._from(self.flat() | (NO_TEXT if named else {}), options)

    @property
    def length(self) -> int:
        """Number of inputs in a row of the batch."""
        return self.data.context

    @property
    def num_inputs(self) -> int:
        """Number of tokens of the vocabulary."""
        return self.data.vocabulary

    @property
    def num_train_tokens(self) -> int | None:
        """Tokens of the whole run; None if minutes are its budget."""
        steps, train = self.train.steps, self.train
        return None if steps is None else steps * train.batch_size * self.data.context

    @property
    def train_steps(self) -> int:
        """Most solver updates in training; for "parcae", the expected number of loops."""
        return self._longest_loop if self.model.name == "parcae" else self.solve.train_steps

    @property
    def _longest_loop(self) -> int:
        """Expected largest draw of a batch, whose sequences all loop as long; see `ParcaeLM`."""
        loops = self.model.loops
        below = torch.special.gammaincc(torch.arange(1.0, 2 * loops), torch.tensor(loops - 1.0))
        return 1 + round(float((1 - below**self.train.batch_size).sum()))

    def spec(self) -> LanguageSpec:
        """The shape of the model."""
        data = self.data
        shape = self.model.shape()
        return LanguageSpec(vocabulary=data.vocabulary, context=data.context, **shape)

    def build(self) -> LanguageModule:
        """The model, with fresh weights."""
        return self.model.build(self.spec(), self.solve)


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
    return LanguageConfig.of(
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


# Where the text of a preset is found: it does not come with the package.
TEXT_SOURCES = {
    "tinyshakespeare.txt": "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/"
    "tinyshakespeare/input.txt",
}
PRESETS: dict[str, LanguageConfig] = {
    "tiny": LanguageConfig.of(
        minutes=0.5, threads=1, width=64, num_heads=4, backbone_blocks=1, vocabulary=257,
        context=64, max_bytes=1_000_000, eval_tokens=8192,
    ),
    "mini": LanguageConfig.of(
        minutes=1.5, threads=1, width=64, num_heads=4, backbone_blocks=1, vocabulary=512,
        context=64, eval_tokens=32_768,
    ),
    "small": LanguageConfig.of(),
    # The shape and the split of nanoGPT's recipe for a CPU, https://github.com/karpathy/nanoGPT.
    "shakespeare": LanguageConfig.of(
        text=Path("tinyshakespeare.txt"), vocabulary=257, context=64, held_out=0.1,
        eval_tokens=111_540, steps=2000, batch_size=12, threads=1,
        width=128, num_heads=4, backbone_blocks=3,
    ),
    "140m": _published(1024, 8, 7, 11.2),
    "370m": _published(1536, 12, 10, 29.6),
    "770m": _published(2048, 16, 13, 61.6),
    "1.3b": _published(2560, 20, 15, 104.0),
}  # fmt: skip
DEFAULT_PRESET = "small"


class LanguageTask:
    """The language task, as the shared command line sees it."""

    name = "lm"
    config_type = LanguageConfig
    presets = PRESETS
    default_preset = DEFAULT_PRESET
