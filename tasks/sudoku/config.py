"""The options of a Sudoku run, and its presets."""

from dataclasses import dataclass
from typing import Any, ClassVar

from models import GridSpec
from tasks.puzzles.config import GridConfig, GridData
from tasks.sudoku.board import Board


@dataclass(frozen=True, kw_only=True)
class SudokuData(GridData):
    """Sudoku puzzles; see `GridData`.

    Attributes:
        side: 4, 6, 8, 9, 10 and so on to 35, but no primes.
        min_clues: Fewest clues; by default 30 on 9x9, 45 % of other boards.
        max_clues: Most clues; by default 34 on 9x9, half of other boards.
        minimal: Only puzzles that need every clue.
        min_guesses: Our solver needs so many guesses.
        copies: Symmetric copies of each; by default no end.
        extra_clues: Cells shown besides, fewer with time.
        relatives: Puzzles made from each training puzzle.
    """

    making: ClassVar[tuple[str, ...]] = (
        "test_puzzles", "min_clues", "max_clues", "minimal", "min_guesses"
    )  # fmt: skip
    training: ClassVar[tuple[str, ...]] = ("copies", "extra_clues", "relatives")

    side: int = 9
    min_clues: int | None = None
    max_clues: int | None = None
    minimal: bool = False
    min_guesses: int = 0
    copies: int | None = None
    extra_clues: int = 0
    relatives: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0, "min_guesses", "extra_clues", "relatives")
        self.require(1, "copies")
        Board.of(self.side)
        low, high = self.clues
        made = "min_clues" not in self.unused()
        if made and not 0 < low <= high <= self.side**2:
            raise ValueError(
                f"`min_clues` and `max_clues` must satisfy 0 < min <= max <= {self.side**2}, got "
                f"{low} and {high}."
            )

    @property
    def clues(self) -> tuple[int, int]:
        """Fewest and most clues of a puzzle that is made."""
        low, high = (30, 34) if self.side == 9 else (round(0.45 * self.side**2), self.side**2 // 2)
        return (
            low if self.min_clues is None else self.min_clues,
            high if self.max_clues is None else self.max_clues,
        )

    @property
    def board(self) -> Board:
        """The geometry of the board."""
        return Board.of(self.side)


@dataclass(frozen=True, kw_only=True)
class SudokuConfig(GridConfig):
    """Train on Sudoku puzzles of one kind, then evaluate on others of that kind."""

    data_type: ClassVar[type[SudokuData]] = SudokuData
    # Trained maps turn about their fixed points: plain iteration gets the same answers, slowly.
    defaults: ClassVar[dict[str, Any]] = {**GridConfig.defaults, "eval_solver": "broyden"}

    data: SudokuData

    def spec(self) -> GridSpec:
        """The shape of the model."""
        board, side = self.data.board, self.data.side
        units = (board.row_of, board.column_of, board.box_of)
        return GridSpec(num_symbols=side, side=side, units=units, **self.shape())


_HARD = SudokuConfig.of(
    min_clues=22, max_clues=26, minimal=True, minutes=18.0, segments=8, learning_rate=3e-3,
    recorded_steps=3, averaging=0.995, eval_max_steps=128,
)  # fmt: skip
# The published recipes, with what differs in docs/reproduce.md. Nothing was clipped, and no
# gradient reaches this norm. Steps are epochs times 1000 puzzles over the batch: 50,000 epochs of
# TRM and EqR, 20,000 of HRM. An evaluation makes the updates of all sixteen segments.
_PUBLISHED = SudokuConfig.of(
    model="reasoner", layout="attention", min_clues=17, max_clues=25, minimal=True, copies=1000,
    width=512, expansion=3.0, num_heads=8, batch_size=768, segments=16, refill=True,
    learning_rate=1e-4, schedule="constant", warmup=2000, steps=65_104, weight_decay=1.0, clip=1e6,
    averaging=0.999, loss="stablemax", halting="right", autocast=True, eval_solver="picard",
    eval_max_steps=80, puzzle_tokens=16,
)  # fmt: skip
# All but the Attractor, which took AdamW.
_ATAN2 = _PUBLISHED.changed(optimizer="adam-atan2")
_TRM = _ATAN2.changed(model="trm", eval_max_steps=48)
# Three updates, as the released code makes in effect, since its solver never converges.
_ATTRACTOR = _PUBLISHED.changed(refiner_blocks=8, batch_size=384, steps=130_208)

PRESETS: dict[str, SudokuConfig] = {
    "tiny": SudokuConfig.of(
        side=4, min_clues=4, max_clues=6, minimal=True, minutes=0.5, threads=1, test_puzzles=500,
        eval_max_steps=32,
    ),
    "mini": SudokuConfig.of(side=6, min_clues=9, max_clues=11, minutes=2.5, test_puzzles=500),
    "standard": SudokuConfig.of(
        minutes=3.2, optimizer="muon", learning_rate=5e-3, eval_max_steps=128,
        # A batch is then mostly of puzzles that take long.
        segments=8, refill=True,
    ),
    "hard": _HARD,
    "extreme": _HARD.changed(
        min_clues=17, max_clues=25, min_guesses=20, relatives=15, minutes=100.0, start_noise=0.5,
        averaging=0.999, eval_max_steps=128,
        # Solves four to six points more of the Sudoku-Extreme kind than `broyden`.
        eval_solver="picard",
    ),
    "sudoku-extreme-7m": _PUBLISHED,
    "sudoku-extreme-27m": _ATTRACTOR,
    "sudoku-extreme-solved-27m": _ATTRACTOR.changed(
        solver="anderson", eval_solver="anderson", train_max_steps=8, rtol=1e-3,
    ),
    "sudoku-extreme-trm-7m": _TRM,
    "sudoku-extreme-trm-27m": _TRM.changed(
        refiner_blocks=8, batch_size=384, steps=130_208
    ),
    "sudoku-extreme-trm-5m": _TRM.changed(layout="mixer"),
    "sudoku-extreme-eqr-5m": _TRM.changed(model="eqr", layout="mixer", puzzle_tokens=0),
    "sudoku-extreme-transformer-27m": _ATAN2.changed(
        model="transformer", backbone_blocks=0, refiner_blocks=8, steps=26_041, averaging=0.0,
    ),
    "sudoku-extreme-hrm-27m": _ATAN2.changed(
        model="hrm", halting="q-learning", refiner_blocks=4, puzzle_tokens=1, steps=26_041,
        averaging=0.0, eval_max_steps=32,
    ),
}  # fmt: skip
DEFAULT_PRESET = "standard"
