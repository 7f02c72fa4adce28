"""The options of a maze run, and its presets."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from models import GridSpec
from tasks.puzzles.config import GridConfig, GridData


@dataclass(frozen=True, kw_only=True)
class MazeData(GridData):
    """Mazes; see `GridData`.

    Attributes:
        side: Cells of a row.
        kind: Random walls, or perfect mazes with one path.
        min_path: Fewest cells of a shortest path.
        max_path: Most.
    """

    making: ClassVar[tuple[str, ...]] = ("test_puzzles", "min_path", "max_path")

    side: int = 15
    kind: Literal["hard", "unique"] = "hard"
    min_path: int = 30
    max_path: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(3, "side", most=1000)
        made = "min_path" not in self.unused()
        if made and not 2 <= self.min_path <= (self.max_path or self.min_path) <= self.side**2:
            raise ValueError(
                f"`min_path` and `max_path` must satisfy 2 <= min <= max <= {self.side**2}, got "
                f"{self.min_path} and {self.max_path}."
            )


@dataclass(frozen=True, kw_only=True)
class MazeConfig(GridConfig):
    """Train on mazes of one kind, then evaluate on others of that kind."""

    data_type: ClassVar[type[MazeData]] = MazeData
    defaults: ClassVar[dict[str, Any]] = {
        **GridConfig.defaults,
        "layout": "image",
        "solver": "broyden",
        "train_max_steps": 4,
        "recorded_steps": 3,
        "segments": 10,
        "refill": True,
        "learning_rate": 3e-3,
        "train_puzzles": 10_000,
    }
    dropped: ClassVar[frozenset[str]] = frozenset({"copies"})
    any_size: ClassVar[dict[str, Any]] = {"min_path": 2}

    data: MazeData

    def spec(self) -> GridSpec:
        """The shape of the model: a question has walls, free cells, S and G; an answer also o."""
        shape = self.shape()
        # As published, TRM and EqR make four cycles on mazes, and six on Sudoku.
        cycles = 4 if shape["layout"] == "attention" else GridSpec.cycles
        return GridSpec(num_symbols=5, num_inputs=4, side=self.data.side, cycles=cycles, **shape)


# The published recipes, with what differs in docs/reproduce.md: see `tasks.sudoku.config`, whose
# steps and updates these have as well, if not said otherwise.
_PUBLISHED = MazeConfig.of(
    model="reasoner", side=30, min_path=110, train_puzzles=1000, layout="attention", width=512,
    expansion=3.0, num_heads=8, batch_size=768, segments=16, learning_rate=1e-4,
    schedule="constant", warmup=2000, steps=65_104, solver="picard", train_max_steps=3,
    recorded_steps=2, weight_decay=1.0, clip=1e6, averaging=0.999, loss="stablemax",
    halting="right", autocast=True, eval_max_steps=80, puzzle_tokens=16,
)  # fmt: skip
_ATAN2 = _PUBLISHED.changed(optimizer="adam-atan2")
_TRM = _ATAN2.changed(model="trm", eval_max_steps=48)
_ATTRACTOR = _PUBLISHED.changed(refiner_blocks=8, batch_size=128, steps=390_625)
# Of EqR alone, with 100,000 epochs and a network of one block.
_UNIQUE = _TRM.changed(
    model="eqr", kind="unique", min_path=100, max_path=140, refiner_blocks=1, width=128,
    expansion=4.0, puzzle_tokens=0, steps=130_208,
)  # fmt: skip

PRESETS: dict[str, MazeConfig] = {
    "tiny": MazeConfig.of(
        side=9, min_path=14, minutes=2.4, test_puzzles=500, optimizer="muon", learning_rate=5e-3,
        averaging=0.995,
    ),
    "mini": MazeConfig.of(
        side=15, min_path=30, minutes=16.0, test_puzzles=500, width=40, averaging=0.995,
        eval_max_steps=128,
    ),
    "hard": MazeConfig.of(
        side=30, min_path=110, minutes=100.0, train_puzzles=1000, test_puzzles=100, width=48,
        segments=16, averaging=0.997, eval_max_steps=256,
    ),
    "unique": MazeConfig.of(
        side=30, kind="unique", min_path=100, max_path=140, minutes=100.0, train_puzzles=1000,
        width=48, segments=16, averaging=0.999, eval_max_steps=256,
    ),
    "maze-hard-7m": _PUBLISHED,
    "maze-hard-27m": _ATTRACTOR,
    "maze-hard-solved-27m": _ATTRACTOR.changed(solver="anderson", train_max_steps=8, rtol=1e-3),
    "maze-hard-trm-7m": _TRM,
    "maze-hard-trm-27m": _TRM.changed(
        refiner_blocks=8, batch_size=128, steps=390_625
    ),
    "maze-hard-eqr-7m": _TRM.changed(model="eqr", puzzle_tokens=0),
    "maze-hard-transformer-27m": _ATAN2.changed(
        model="transformer", backbone_blocks=0, refiner_blocks=8, steps=26_041, averaging=0.0,
    ),
    "maze-hard-hrm-27m": _ATAN2.changed(
        model="hrm", halting="q-learning", refiner_blocks=4, puzzle_tokens=1, steps=26_041,
        averaging=0.0, eval_max_steps=32,
    ),
    "maze-unique-eqr-260k": _UNIQUE,
    "maze-unique-trm-260k": _UNIQUE.changed(model="trm"),
}  # fmt: skip
DEFAULT_PRESET = "mini"
