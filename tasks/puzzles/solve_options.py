"""How the models of grid puzzles are solved, in training and in evaluation."""

import dataclasses
from dataclasses import dataclass

from implicit import Phantom, get_backward
from implicit.base import BackwardMode
from solvers import FixedPointSolver, Picard, get_solver
from tasks.training.options import Section


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
        return Picard(rtol=0.0, atol=0.0, keeps_last=True)

    def evaluation_solver(self, name: str | None = None) -> FixedPointSolver:
        """The solver in evaluation, or another one by name; it may stop early."""
        if name is None:
            return Picard(rtol=self.rtol, keeps_last=True)
        return get_solver(name, rtol=self.rtol)

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
        eval_solver: In evaluation; if none, that of training.
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
