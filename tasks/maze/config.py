"""The options of a maze run, and its presets."""

import dataclasses
from typing import Literal

from models import GridSpec
from tasks.puzzles.config import GridConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MazeConfig(GridConfig):
    """Train on mazes of one kind, then evaluate on others of that kind.

    Attributes:
        side: Cells of a row.
        kind: "hard": random walls, and of the many shortest paths the one that a breadth-first
            search with the order down, left, right, up finds first. "unique": perfect mazes,
            with one path.
        min_path: Fewest cells of a shortest path, start and goal included.
        max_path: Most.
    """

    side: int = 15
    kind: Literal["hard", "unique"] = "hard"
    min_path: int = 30
    max_path: int | None = None
    layout: Literal["image", "attention", "mixer"] = "image"  # type: ignore[assignment]
    solver: str = "broyden"
    free_steps: int = 4
    recorded_steps: int = 3
    segments: int = 10
    refill: bool = True
    learning_rate: float = 3e-3
    train_puzzles: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side < 3:
            raise ValueError(f"`side` must be at least 3, got {self.side}.")
        if not 2 <= self.min_path <= (self.max_path or self.min_path) <= self.side**2:
            raise ValueError(
                f"`min_path` and `max_path` must satisfy 2 <= min <= max <= {self.side**2}, got "
                f"{self.min_path} and {self.max_path}."
            )

    def spec(self) -> GridSpec:
        """The shape of the model: a question has walls, free cells, S and G; an answer also o."""
        return GridSpec(num_symbols=5, num_inputs=4, side=self.side, **self.shape())


# The published recipes of TRM and EqR: arXiv:2510.04871, sec. 5 and app.; arXiv:2605.21488.
_PUBLISHED = MazeConfig(
    side=30,
    min_path=110,
    train_puzzles=1000,
    layout="attention",
    width=512,
    expansion=3.0,
    num_heads=8,
    batch_size=128,
    segments=16,
    learning_rate=1e-4,
    warmup=2000,
    steps=600_000,
    recorded_steps=2,
    solver="anderson",
    weight_decay=1.0,
    averaging=0.999,
    loss="stablemax",
    halting=True,
    autocast=True,
)

PRESETS: dict[str, MazeConfig] = {
    "tiny": MazeConfig(
        side=9,
        min_path=14,
        minutes=2.4,
        test_puzzles=500,
        optimizer="muon",
        learning_rate=5e-3,
        averaging=0.995,
    ),
    "mini": MazeConfig(
        side=15,
        min_path=30,
        minutes=16.0,
        test_puzzles=500,
        width=40,
        averaging=0.995,
        eval_steps=128,
    ),
    "hard": MazeConfig(
        side=30,
        min_path=110,
        minutes=100.0,
        train_puzzles=1000,
        test_puzzles=100,
        width=48,
        segments=16,
        averaging=0.997,
        eval_steps=256,
    ),
    "unique": MazeConfig(
        side=30,
        kind="unique",
        min_path=100,
        max_path=140,
        minutes=100.0,
        train_puzzles=1000,
        width=48,
        segments=16,
        averaging=0.999,
        eval_steps=256,
    ),
    "maze-hard-7m": dataclasses.replace(_PUBLISHED, model="reasoner"),
    "maze-hard-27m": dataclasses.replace(
        _PUBLISHED, model="reasoner", refiner_blocks=8, batch_size=48
    ),
    "maze-hard-trm-7m": dataclasses.replace(_PUBLISHED, model="trm"),
    "maze-hard-eqr-7m": dataclasses.replace(_PUBLISHED, model="eqr"),
    "maze-hard-hrm-27m": dataclasses.replace(_PUBLISHED, model="hrm", refiner_blocks=4),
}
DEFAULT_PRESET = "mini"
