"""The sections of a language model's shape, one for each kind of model."""

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from models import AttractorLM, LanguageSpec, ParcaeLM, Start, TransformerLM
from models.language import Initial, Injection, Mixer
from models.parcae import Recurrence
from tasks.training.options import Section

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
        rope_base: Of the rotary positions.
        initial: First weights.
        norm_embedding: Tokens enter with a root mean square of 1.
        norm_eps: What norms add to the mean square.
    """

    name: ClassVar[ModelName]

    width: int = 128
    num_heads: int = 2
    backbone_blocks: int = 11
    refiner_blocks: int = 1
    tied: bool = True
    rope_base: float = 10_000.0
    initial: Initial = "plain"
    norm_embedding: bool = True
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        self.require(1, "rope_base", most=1e9)
        self.require(0, "norm_eps", most=1)

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
        value_embeddings: Every second block embeds tokens anew.
    """

    name: ClassVar[ModelName] = "transformer"

    mixer: Mixer = "attention"
    value_embeddings: bool = False

    def unused(self) -> dict[str, str]:
        """See `Section`."""
        if self.mixer == "attention":
            return {}
        names = ["rope_base", "value_embeddings"]
        names += ["num_heads"] if self.mixer in RECURRENT else []
        return dict.fromkeys(names, "with `--mixer attention`")

    def shape(self) -> dict[str, Any]:
        """See `Network`."""
        values = self.value_embeddings and self.mixer == "attention"
        return {**super().shape(), "value_embeddings": values}

    def build(self, spec: LanguageSpec, solve: Any) -> LanguageModule:
        """See `Network`."""
        return TransformerLM(spec)


@dataclass(frozen=True, kw_only=True)
class Parcae(Transformer):
    """A loop of drawn length.

    Attributes:
        loops: Mean in training; their number otherwise.
        coda_blocks: Of the backbone, those after the loop.
        recurrence: How states are carried over, and drawn.
    """

    name: ClassVar[ModelName] = "parcae"

    loops: int = 8
    coda_blocks: int = 1
    recurrence: Recurrence = "plain"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0, "coda_blocks")
        self.require(1, "loops", most=1000)

    def build(self, spec: LanguageSpec, solve: Any) -> LanguageModule:
        """See `Network`."""
        return ParcaeLM(spec, self.loops, coda=self.coda_blocks, recurrence=self.recurrence)


@dataclass(frozen=True, kw_only=True)
class Solved(Network):
    """A refiner is solved.

    Attributes:
        injection: How the refiner sees the proposal.
        gate: Largest value of the refiner's gates.
        gate_start: Where they start; by default at half of it.
    """

    injection: Injection = "additive"
    gate: float = 1.0
    gate_start: float | None = None

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
