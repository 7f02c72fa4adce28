"""The options of a run on any grid puzzle: the model, how it is solved, the puzzles."""

import dataclasses
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

from implicit import Phantom, get_backward
from implicit.base import BackwardMode
from models import GridAttractor, GridModel, GridSpec, GridTransformer, Reasoner, TokenLayout
from models.reasoners import UPDATES
from solvers import FixedPointSolver, Picard, get_solver
from tasks.training.config import TrainConfig

ModelName = Literal["attractor", "reasoner", "trm", "hrm", "eqr", "unrolled", "transformer"]

# (free, recorded) applications of a segment, as published; other models take the options.
PUBLISHED_STEPS = {"trm": (2, 1), "hrm": (1, 1), "eqr": (2, 1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridConfig(TrainConfig):
    """Train on grid puzzles of one kind, then evaluate on others of that kind.

    Attributes:
        train_puzzles: Puzzles to train on, each seen in many symmetric copies. Of a file that
            has more, as many are drawn.
        copies: Symmetric copies of each, the first of them itself, drawn once for all; by
            default a new one every time.
        test_puzzles: Held-out puzzles.
        train_data: A file of puzzles to train on instead of made ones; see `eval --data`.
        test_data: Likewise for held-out ones.
        model: "attractor": a backbone proposes, a refiner is solved. "reasoner": the same
            without a backbone, with two latents. Baselines: "trm", "hrm" and "eqr", with the
            steps they were published with; "unrolled", the attractor's network through a
            fixed number of steps with ordinary backpropagation; "transformer", as many
            blocks, each used once.
        layout: Tokens of the network; see `models.GridSpec`.
        width: Numbers per token.
        backbone_blocks: Blocks that make the proposal.
        refiner_blocks: Blocks of the map that is solved; of each network of a baseline.
        num_heads: Heads, where the layout has attention.
        expansion: Hidden width of the MLPs over `width`; by default the layout's.
        solver: Registered solver name, in training.
        eval_solver: In evaluation; by default the one of training. Baselines do not use it.
        backward: Registered backward mode.
        free_steps: Solver updates per training segment.
        recorded_steps: Recorded updates after them (phantom gradient).
        damping: Weight that a solver step keeps on the old state, for solvers that have it;
            recorded updates are damped alike.
        rtol: Relative residual at which a puzzle counts as solved for.
        start_noise: Standard deviation of noise on the start of fresh samples in training.
        eval_steps: Budget of solver updates in evaluation.
    """

    paths: ClassVar[tuple[str, ...]] = ("out", "train_data", "test_data")
    unit: ClassVar[str] = "puzzle"

    train_puzzles: int = 1000
    copies: int | None = None
    test_puzzles: int = 1000
    train_data: Path | None = None
    test_data: Path | None = None
    model: ModelName = "attractor"
    layout: TokenLayout = "candidates"
    width: int = 32
    backbone_blocks: int = 1
    refiner_blocks: int = 2
    num_heads: int = 4
    expansion: float | None = None
    solver: str = "picard"
    eval_solver: str | None = None
    backward: str = "phantom"
    free_steps: int = 3
    recorded_steps: int = 2
    damping: float = 0.0
    rtol: float = 1e-5
    start_noise: float = 0.0
    eval_steps: int = 64
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (self.solver, self.eval_solver or self.solver):
            get_solver(name, rtol=self.rtol)
        self.build_solver()
        get_backward(self.backward)
        for name in ("free_steps", "train_puzzles", "test_puzzles", "start_noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)!r}.")
        for name in ("width", "recorded_steps", "refiner_blocks", "eval_steps", "copies"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)!r}.")

    @abstractmethod
    def spec(self) -> GridSpec:
        """The shape of the model."""

    def shape(self) -> dict[str, Any]:
        """The options of `spec` that are the same for all puzzles."""
        names = ("layout", "width", "backbone_blocks", "refiner_blocks", "num_heads", "expansion")
        return {name: getattr(self, name) for name in names}

    @property
    def steps_of_segment(self) -> tuple[int, int]:
        """Free and recorded updates of a training segment."""
        return PUBLISHED_STEPS.get(self.model, (self.free_steps, self.recorded_steps))

    @property
    def length(self) -> int:
        """Number of inputs in a row of the batch."""
        return self.spec().num_cells

    @property
    def units_per_sample(self) -> int:
        """Number of puzzles in a row of the batch."""
        return 1

    @property
    def train_steps(self) -> int:
        """Updates that the solver makes in a training segment."""
        free, recorded = self.steps_of_segment
        return free + recorded if self.model == "unrolled" else free

    def build(self) -> GridModel:
        """The model, with fresh weights."""
        spec = self.spec()
        if self.model == "transformer":
            return GridTransformer(spec)
        solver, backward, steps = self.build_solver(), self.build_backward(), self.eval_steps
        if self.model in UPDATES:
            start = "random" if self.model == "eqr" else "learned"
            update = UPDATES[self.model](spec)
            return Reasoner(spec, update, solver, backward, steps, start, self.halting)
        return GridAttractor(spec, solver, backward, steps, self.start_noise)

    def build_solver(self) -> FixedPointSolver:
        """The solver in training; a baseline's fixed number of steps never stops early."""
        if self._is_baseline:
            return Picard(rtol=0.0, atol=0.0)
        damping = {"damping": self.damping} if self.damping else {}
        return get_solver(self.solver, rtol=self.rtol, **damping)

    def evaluation_solver(self, name: str | None = None) -> FixedPointSolver:
        """The solver in evaluation, or another one by name; it may stop early."""
        usual = "picard" if self._is_baseline else self.eval_solver or self.solver
        name = name or usual
        damping = {"damping": self.damping} if self.damping and name == self.solver else {}
        return get_solver(name, rtol=self.rtol, **damping)

    @property
    def _is_baseline(self) -> bool:
        return self.model in PUBLISHED_STEPS or self.model == "unrolled"

    def build_backward(self) -> BackwardMode:
        """The backward mode, with the options of this run."""
        if self.model == "unrolled":
            return get_backward("unrolled")
        mode = Phantom() if self.model in PUBLISHED_STEPS else get_backward(self.backward)
        if isinstance(mode, Phantom):
            damping = 0.0 if self.model in PUBLISHED_STEPS else self.damping
            return dataclasses.replace(mode, steps=self.steps_of_segment[1], damping=damping)
        return mode
