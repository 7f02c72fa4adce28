"""The options of a run on any grid puzzle: the model, how it is solved, the puzzles."""

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from models import GridAttractor, GridSpec, GridTransformer, TokenLayout
from models.grid import Halting
from tasks.puzzles.solve_options import HrmSteps, PublishedSteps, Solve, UnrolledSteps
from tasks.training.options import Config, Kind, NoSolve, Section, TrainOptions

if TYPE_CHECKING:
    from models import GridModel

ModelName = Literal["attractor", "reasoner", "trm", "hrm", "eqr", "unrolled", "transformer"]
WITH_HEADS = ("cells", "attention")
WITH_PUZZLE_TOKENS = ("attention", "mixer")


@dataclass(frozen=True, kw_only=True)
class Network(Section):
    """The shape of any model; see `models.GridSpec`.

    Attributes:
        layout: Tokens of the network.
        width: Numbers per token.
        refiner_blocks: Blocks that are solved.
        num_heads: Heads of the attention.
        expansion: Hidden width of the MLPs over `width`.
    """

    name: ClassVar[ModelName]

    layout: TokenLayout = "candidates"
    width: int = 32
    refiner_blocks: int = 2
    num_heads: int = 4
    expansion: float | None = None

    def __post_init__(self) -> None:
        self.require(1, "width", "refiner_blocks", "num_heads")
        self.require(0, "expansion")

    def unused(self) -> dict[str, str]:
        """See `Section`."""
        return {} if self.layout in WITH_HEADS else {"num_heads": "with `--layout attention`"}

    @abstractmethod
    def build(self, spec: GridSpec, solve: Any) -> "GridModel":
        """The model, with fresh weights."""


@dataclass(frozen=True, kw_only=True)
class Transformer(Network):
    """As many blocks as an attractor has, each used once.

    Attributes:
        backbone_blocks: Blocks that make the proposal.
    """

    name: ClassVar[ModelName] = "transformer"

    backbone_blocks: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0, "backbone_blocks")

    def build(self, spec: GridSpec, solve: Any) -> "GridModel":
        """See `Network`."""
        return GridTransformer(spec)


@dataclass(frozen=True, kw_only=True)
class Attractor(Network):
    """A backbone proposes an answer, and a refiner is solved.

    Attributes:
        backbone_blocks: Blocks that make the proposal.
        start_noise: Noise on fresh starts in training.
    """

    name: ClassVar[ModelName] = "attractor"

    backbone_blocks: int = 1
    start_noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0, "start_noise", "backbone_blocks")

    def build(self, spec: GridSpec, solve: Any) -> "GridModel":
        """See `Network`."""
        solver, backward = solve.train_solver(), solve.backward_mode()
        return GridAttractor(spec, solver, backward, solve.eval_max_steps, self.start_noise)


@dataclass(frozen=True, kw_only=True)
class Unrolled(Attractor):
    """The attractor's network through a fixed number of steps, with ordinary backpropagation."""

    name: ClassVar[ModelName] = "unrolled"


@dataclass(frozen=True, kw_only=True)
class TwoLatents(Network):
    """A map of two latents without a backbone, which is solved.

    Attributes:
        halting: Learn when to stop: if right, or by Q-learning.
        puzzle_tokens: Tokens before the cells.
    """

    name: ClassVar[ModelName] = "reasoner"
    start: ClassVar[Literal["learned", "random"]] = "learned"

    halting: Halting = "none"
    puzzle_tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0, "puzzle_tokens", most=1000)

    def unused(self) -> dict[str, str]:
        """See `Section`."""
        found = super().unused()
        if self.layout not in WITH_PUZZLE_TOKENS:
            found["puzzle_tokens"] = "with `--layout attention` or `--layout mixer`"
        return found

    def build(self, spec: GridSpec, solve: Any) -> "GridModel":
        """See `Network`."""
        from models.reasoners import UPDATES, Reasoner

        update, max_steps = UPDATES[self.name](spec), solve.eval_max_steps
        solver, backward = solve.train_solver(), solve.backward_mode()
        return Reasoner(spec, update, solver, backward, max_steps, self.start, self.halting)


@dataclass(frozen=True, kw_only=True)
class Trm(TwoLatents):
    """The Tiny Recursive Model."""

    name: ClassVar[ModelName] = "trm"


@dataclass(frozen=True, kw_only=True)
class Hrm(TwoLatents):
    """The Hierarchical Reasoning Model."""

    name: ClassVar[ModelName] = "hrm"


@dataclass(frozen=True, kw_only=True)
class Eqr(TwoLatents):
    """The Equilibrium Reasoner."""

    name: ClassVar[ModelName] = "eqr"
    start: ClassVar[Literal["learned", "random"]] = "random"


@dataclass(frozen=True, kw_only=True)
class OnePass(TrainOptions):
    """How to train a model of puzzles; see `TrainOptions`.

    Attributes:
        optimizer: "muon": for matrices, AdamW for others; "adam-atan2": as TRM.
        loss: Kind of cross-entropy.
    """

    optimizer: Literal["adamw", "muon", "adam-atan2"] = "adamw"
    loss: Literal["softmax", "stablemax"] = "softmax"


@dataclass(frozen=True, kw_only=True)
class Segments(OnePass):
    """How to train a model that goes on from the state it ended in; see `TrainOptions`.

    Attributes:
        segments: Solves of a sample, a loss after each.
        refill: Replace solved samples at once.
    """

    segments: int = 4
    refill: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.segments > 0:
            raise ValueError(f"`segments` must be above 0, got {self.segments!r}.")


@dataclass(frozen=True, kw_only=True)
class GridData(Section):
    """Puzzles to train on, and others to evaluate on.

    Attributes:
        train_puzzles: Puzzles to train on.
        test_puzzles: Held-out puzzles.
        train_data: A file of puzzles to train on.
        test_data: A file of held-out puzzles.
    """

    paths: ClassVar[tuple[str, ...]] = ("train_data", "test_data")
    # The options of puzzles that are made.
    making: ClassVar[tuple[str, ...]] = ("test_puzzles",)
    # Those that only training reads, so that puzzles which were made before need not be made anew.
    training: ClassVar[tuple[str, ...]] = ()

    train_puzzles: int = 1000
    test_puzzles: int = 1000
    train_data: Path | None = None
    test_data: Path | None = None

    def __post_init__(self) -> None:
        self.require(0, "train_puzzles", "test_puzzles")

    def unused(self) -> dict[str, str]:
        """See `Section`."""
        if self.train_data is None or self.test_data is None:
            return {}
        return dict.fromkeys(self.making, "without `--train-data` or `--test-data`")


@dataclass(frozen=True, kw_only=True)
class GridConfig(Config):
    """Train on grid puzzles of one kind, then evaluate on others of that kind."""

    kinds: ClassVar[dict[str, Kind]] = {
        "attractor": Kind(Attractor, Solve, Segments),
        "reasoner": Kind(TwoLatents, Solve, Segments),
        "trm": Kind(Trm, PublishedSteps, Segments),
        "hrm": Kind(Hrm, HrmSteps, Segments),
        "eqr": Kind(Eqr, PublishedSteps, Segments),
        "unrolled": Kind(Unrolled, UnrolledSteps, Segments),
        "transformer": Kind(Transformer, NoSolve, OnePass),
    }
    defaults: ClassVar[dict[str, Any]] = {"model": "attractor", "batch_size": 32}
    unit: ClassVar[str] = "puzzle"
    # Options of puzzles to make that allow a board of any size.
    any_size: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        self.spec()

    @abstractmethod
    def spec(self) -> GridSpec:
        """The shape of the model."""

    def shape(self) -> dict[str, Any]:
        """The options of `spec` that are the same for all puzzles."""
        names = {field.name for field in dataclasses.fields(GridSpec)} - set(self.model.unused())
        return {n: getattr(self.model, n) for n in self.model.names() if n in names}

    @property
    def length(self) -> int:
        """Number of inputs in a row of the batch."""
        return self.spec().num_cells

    @property
    def state_length(self) -> int:
        """Number of places in the state of a row of the batch."""
        return self.spec().num_tokens

    @property
    def num_inputs(self) -> int:
        """Number of symbols that a question may have."""
        return self.spec().num_inputs or self.num_classes + 1

    @property
    def num_classes(self) -> int:
        """Number of symbols that an answer may have."""
        return self.spec().num_symbols

    def build(self) -> "GridModel":
        """The model, with fresh weights."""
        return self.model.build(self.spec(), self.solve)
