"""The options of a run on any grid puzzle: the model, how it is solved, the puzzles."""

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from implicit import Phantom, get_backward
from implicit.base import BackwardMode
from models import GridAttractor, GridSpec, GridTransformer, TokenLayout
from solvers import FixedPointSolver, Picard, get_solver
from tasks.training.options import Config, Kind, NoSolve, Section, TrainOptions

if TYPE_CHECKING:
    from models import GridModel

ModelName = Literal["attractor", "reasoner", "trm", "hrm", "eqr", "unrolled", "transformer"]
WITH_HEADS = ("cells", "attention")


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
        halting: Also learn to tell right answers.
    """

    name: ClassVar[ModelName] = "reasoner"
    start: ClassVar[Literal["learned", "random"]] = "learned"

    halting: bool = False

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
class PublishedSteps(Section):
    """The published number of plain steps in training, of which the last ones are recorded.

    Attributes:
        rtol: Relative residual of a solved puzzle.
        eval_max_steps: Solver updates in evaluation, at most.
    """

    train_steps = 2
    recorded = 1

    rtol: float = 1e-5
    eval_max_steps: int = 64

    def __post_init__(self) -> None:
        self.require(1, "eval_max_steps")
        self.evaluation_solver()

    def train_solver(self) -> FixedPointSolver:
        """The solver in training: a fixed number of steps, which never stops early."""
        return Picard(rtol=0.0, atol=0.0)

    def evaluation_solver(self, name: str | None = None) -> FixedPointSolver:
        """The solver in evaluation, or another one by name; it may stop early."""
        return get_solver(name or "picard", rtol=self.rtol)

    def backward_mode(self) -> BackwardMode:
        """The backward mode."""
        return Phantom(steps=self.recorded)


@dataclass(frozen=True, kw_only=True)
class HrmSteps(PublishedSteps):
    """Those of HRM."""

    train_steps = 1


@dataclass(frozen=True, kw_only=True)
class UnrolledSteps(PublishedSteps):
    """A fixed number of plain steps, all of them recorded.

    Attributes:
        train_max_steps: Updates of a training segment ...
        recorded_steps: ... and further ones, as in `attractor`.
    """

    train_max_steps: int = 3
    recorded_steps: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0, "train_max_steps")
        self.require(1, "recorded_steps")

    @property
    def train_steps(self) -> int:  # type: ignore[override]
        """Updates of a training segment."""
        return self.train_max_steps + self.recorded_steps

    def backward_mode(self) -> BackwardMode:
        """The backward mode."""
        return get_backward("unrolled")


@dataclass(frozen=True, kw_only=True)
class Solve(Section):
    """Any solver and any backward mode.

    Attributes:
        solver: Registered solver, in training.
        eval_solver: In evaluation; by default the same.
        backward: Registered backward mode.
        train_max_steps: Solver updates of a training segment.
        recorded_steps: Recorded updates after them.
        damping: Weight that a step keeps on the old state.
        rtol: Relative residual of a solved puzzle.
        eval_max_steps: Solver updates in evaluation, at most.
    """

    solver: str = "picard"
    eval_solver: str | None = None
    backward: str = "phantom"
    train_max_steps: int = 3
    recorded_steps: int = 2
    damping: float = 0.0
    rtol: float = 1e-5
    eval_max_steps: int = 64

    def __post_init__(self) -> None:
        self.require(0, "train_max_steps")
        self.require(1, "recorded_steps", "eval_max_steps")
        self.train_solver()
        self.evaluation_solver()
        self.backward_mode()

    def unused(self) -> dict[str, str]:
        """See `Section`."""
        found = {}
        if not isinstance(get_backward(self.backward), Phantom):
            found["recorded_steps"] = "with `--backward phantom`"
        if not hasattr(get_solver(self.solver), "damping"):
            found["damping"] = "with solvers that have it, such as `--solver picard`"
        return found

    @property
    def train_steps(self) -> int:
        """Updates of a training segment, besides the recorded ones."""
        return self.train_max_steps

    def train_solver(self) -> FixedPointSolver:
        """The solver in training."""
        return self._solver(self.solver)

    def evaluation_solver(self, name: str | None = None) -> FixedPointSolver:
        """The solver in evaluation, or another one by name."""
        return self._solver(name or self.eval_solver or self.solver)

    def _solver(self, name: str) -> FixedPointSolver:
        """A solver with the options of this run; `damping` belongs to the one of training."""
        options = {"damping": self.damping} if name == self.solver and self._is_damped else {}
        return get_solver(name, rtol=self.rtol, **options)

    def backward_mode(self) -> BackwardMode:
        """The backward mode; its recorded updates are damped as the solver's are."""
        mode = get_backward(self.backward)
        if isinstance(mode, Phantom):
            damping = self.damping if self._is_damped else 0.0
            return dataclasses.replace(mode, steps=self.recorded_steps, damping=damping)
        return mode

    @property
    def _is_damped(self) -> bool:
        return bool(self.damping) and "damping" not in self.unused()


@dataclass(frozen=True, kw_only=True)
class OnePass(TrainOptions):
    """How to train a model of puzzles; see `TrainOptions`.

    Attributes:
        optimizer: "muon": for matrices, AdamW for others.
        loss: Kind of cross-entropy.
    """

    optimizer: Literal["adamw", "muon"] = "adamw"
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
        names = {field.name for field in dataclasses.fields(GridSpec)}
        return {n: getattr(self.model, n) for n in self.model.names() if n in names}

    @property
    def length(self) -> int:
        """Number of inputs in a row of the batch."""
        return self.spec().num_cells

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
