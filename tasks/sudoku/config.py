"""The options of a Sudoku run, and its presets."""

import dataclasses

from models import GridSpec
from tasks.puzzles.config import GridConfig
from tasks.sudoku.board import Board


@dataclasses.dataclass(frozen=True, kw_only=True)
class SudokuConfig(GridConfig):
    """Train on Sudoku puzzles of one kind, then evaluate on others of that kind.

    Attributes:
        side: 4, 6 or 9.
        min_clues: Fewest clues of a puzzle that is made.
        max_clues: Most clues.
        minimal: Only puzzles in which every clue is needed.
        min_guesses: Made puzzles are exchanged for puzzles near them, with the same solution,
            that our solver needs at least so many guesses for.
        extra_clues: Training puzzles show up to so many cells more, at random, at the start of
            training; ever fewer later, and none in its last half.
        relatives: Puzzles made from each training puzzle, with its solution and other clues, to
            train on too; see `tasks.sudoku.relatives`.
    """

    side: int = 9
    min_clues: int = 30
    max_clues: int = 34
    minimal: bool = False
    min_guesses: int = 0
    extra_clues: int = 0
    relatives: int = 0
    # Trained maps turn about their fixed points: plain iteration gets the same answers, slowly.
    eval_solver: str | None = "broyden"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("min_guesses", "extra_clues", "relatives"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        Board.of(self.side)
        if not 0 < self.min_clues <= self.max_clues <= self.side**2:
            raise ValueError(
                f"`min_clues` and `max_clues` must satisfy 0 < min <= max <= {self.side**2}, got "
                f"{self.min_clues} and {self.max_clues}."
            )

    @property
    def board(self) -> Board:
        """The geometry of the board."""
        return Board.of(self.side)

    def spec(self) -> GridSpec:
        """The shape of the model."""
        units = (self.board.row_of, self.board.column_of, self.board.box_of)
        return GridSpec(num_symbols=self.side, side=self.side, units=units, **self.shape())


_HARD = SudokuConfig(
    min_clues=22,
    max_clues=26,
    minimal=True,
    minutes=18.0,
    segments=8,
    learning_rate=3e-3,
    recorded_steps=3,
    averaging=0.995,
    eval_steps=128,
)
# The published recipes of TRM and EqR: arXiv:2510.04871, sec. 5 and app.; arXiv:2605.21488.
_PUBLISHED = SudokuConfig(
    min_clues=17,
    max_clues=25,
    minimal=True,
    copies=1000,
    width=512,
    expansion=3.0,
    num_heads=8,
    batch_size=768,
    segments=16,
    refill=True,
    learning_rate=1e-4,
    warmup=2000,
    steps=1_000_000,
    weight_decay=1.0,
    averaging=0.999,
    loss="stablemax",
    halting=True,
    autocast=True,
    eval_solver="picard",
)

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
    "standard": SudokuConfig(minutes=5.6),
    "hard": _HARD,
    "extreme": dataclasses.replace(
        _HARD,
        min_clues=17,
        max_clues=25,
        min_guesses=20,
        relatives=15,
        minutes=100.0,
        start_noise=0.5,
        averaging=0.999,
        eval_steps=128,
        # Solves four to six points more of the Sudoku-Extreme kind than `broyden`.
        eval_solver="picard",
    ),
    "sudoku-extreme-7m": dataclasses.replace(_PUBLISHED, model="reasoner", layout="attention"),
    "sudoku-extreme-27m": dataclasses.replace(
        _PUBLISHED, model="reasoner", layout="attention", refiner_blocks=8, batch_size=384
    ),
    "sudoku-extreme-trm-7m": dataclasses.replace(_PUBLISHED, model="trm", layout="attention"),
    "sudoku-extreme-trm-5m": dataclasses.replace(_PUBLISHED, model="trm", layout="mixer"),
    "sudoku-extreme-eqr-5m": dataclasses.replace(_PUBLISHED, model="eqr", layout="mixer"),
    "sudoku-extreme-hrm-27m": dataclasses.replace(
        _PUBLISHED, model="hrm", layout="attention", refiner_blocks=4
    ),
}
DEFAULT_PRESET = "standard"
