"""The dials of a Sudoku run, and its presets."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from implicit import Phantom, get_backward
from implicit.base import BackwardMode
from models import GridAttractor, GridSpec, GridTransformer
from solvers import FixedPointSolver, Picard, get_solver
from solvers.registry import unknown
from tasks.common.config import TrainConfig
from tasks.sudoku.board import Board


@dataclass(frozen=True, kw_only=True)
class SudokuConfig(TrainConfig):
    """Train on generated puzzles of one kind, then evaluate on others of that kind.

    Attributes:
        side: 4, 6 or 9.
        min_clues: Fewest clues of a puzzle.
        max_clues: Most clues.
        minimal: Only puzzles in which every clue is needed.
        train_puzzles: Puzzles to train on, each seen in many symmetric copies.
        test_puzzles: Held-out puzzles.
        model: "attractor"; "unrolled", the same network through a fixed number of steps with
            ordinary backpropagation; "transformer", as many blocks, each used once.
        layout: Tokens of the network; see `models.GridSpec`.
        width: Numbers per token.
        solver: Registered solver name.
        backward: Registered backward mode.
        free_steps: Solver updates per training segment.
        recorded_steps: Recorded updates after them (phantom gradient).
        rtol: Relative residual at which a puzzle counts as solved for.
        eval_steps: Budget of solver updates in evaluation.
    """

    side: int = 9
    min_clues: int = 30
    max_clues: int = 34
    minimal: bool = False
    train_puzzles: int = 1000
    test_puzzles: int = 1000
    model: Literal["attractor", "transformer", "unrolled"] = "attractor"
    layout: Literal["candidates", "cells"] = "candidates"
    width: int = 32
    solver: str = "picard"
    backward: str = "phantom"
    free_steps: int = 3
    recorded_steps: int = 2
    rtol: float = 1e-5
    eval_steps: int = 64
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        Board.of(self.side)
        get_solver(self.solver)
        get_backward(self.backward)
        if not 0 < self.min_clues <= self.max_clues <= self.side**2:
            raise ValueError(
                f"`min_clues` and `max_clues` must satisfy 0 < min <= max <= {self.side**2}, got "
                f"{self.min_clues} and {self.max_clues}."
            )

    @property
    def board(self) -> Board:
        """The geometry."""
        return Board.of(self.side)

    @property
    def train_steps(self) -> int:
        """Updates of a training segment that the solver makes."""
        return self.free_steps + (self.recorded_steps if self.model == "unrolled" else 0)

    def build(self) -> GridAttractor | GridTransformer:
        """The model, with fresh weights."""
        board = self.board
        spec = GridSpec(
            units=(board.row_of, board.column_of, board.box_of),
            num_symbols=self.side,
            layout=self.layout,
            width=self.width,
        )
        if self.model == "transformer":
            return GridTransformer(spec)
        return GridAttractor(
            spec, self.build_solver(), self.build_backward(), max_steps=self.eval_steps
        )

    def build_solver(self) -> FixedPointSolver:
        """The solver; the finite loop of "unrolled" never stops early."""
        if self.model == "unrolled":
            return Picard(rtol=0.0, atol=0.0)
        return get_solver(self.solver, rtol=self.rtol)

    def build_backward(self) -> BackwardMode:
        """The backward mode."""
        if self.model == "unrolled":
            return get_backward("unrolled")
        mode = get_backward(self.backward)
        if isinstance(mode, Phantom):
            return dataclasses.replace(mode, steps=self.recorded_steps)
        return mode

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = dataclasses.asdict(self)
        values["out"] = str(self.out) if self.out else None
        return values


PRESETS: dict[str, SudokuConfig] = {
    "tiny": SudokuConfig(
        side=4,
        min_clues=4,
        max_clues=6,
        minimal=True,
        minutes=0.5,
        threads=1,
        test_puzzles=500,
        eval_steps=32,
    ),
    "mini": SudokuConfig(side=6, min_clues=9, max_clues=11, minutes=2.5, test_puzzles=500),
    "standard": SudokuConfig(minutes=8.0),
    "hard": SudokuConfig(
        min_clues=22,
        max_clues=26,
        minimal=True,
        minutes=18.0,
        segments=8,
        learning_rate=3e-3,
        recorded_steps=3,
        averaging=0.995,
        eval_steps=128,
    ),
}
DEFAULT_PRESET = "standard"


def preset(name: str) -> SudokuConfig:
    """A preset by name.

    Raises:
        ValueError: Unknown name; the message lists what exists.
    """
    if name not in PRESETS:
        raise ValueError(unknown("preset", name, list(PRESETS), "Presets"))
    return PRESETS[name]
