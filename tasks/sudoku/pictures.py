"""Pictures of Sudokus: a moment of a solve, with the candidates of each cell."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from implicit.diagnostics.style import BLUE
from tasks.puzzles.glyphs import Glyph
from tasks.puzzles.pictures import GridPicture

# A cell is sure from this probability on; candidates below the other one would not be seen.
SURE, SEEN = 0.9, 0.005
# Of the side of a cell, for the candidates.
PART = 0.92


@dataclass(frozen=True)
class SudokuPicture(GridPicture):
    """A moment of a solve: a large digit where the model is sure, or else its candidates.

    A candidate has its usual place in the cell, and an opacity that is the square root of its
    probability: of the area that a digit covers, a reader would hardly see a ninth.
    """

    unsure: ClassVar[str] = "small: candidates, by probability"

    def is_sure(self, probabilities: Tensor) -> Tensor:
        """See `GridPicture`: here, of those with a probability of at least `SURE`."""
        return probabilities.amax(-1) >= SURE

    def blank(self, probabilities: Tensor, x: float, y: float, answer: int) -> list[Glyph]:
        """See `GridPicture`: here, one digit or all of them; the right one is blue throughout."""
        if self.is_sure(probabilities):
            return super().blank(probabilities, x, y, answer)
        rows, columns = self.box or (1, self.side)
        found = []
        for place, probability in enumerate(probabilities.tolist()):
            if probability < SEEN:
                continue
            row, column = divmod(place, columns)
            symbol = place + self.first_symbol
            found.append(
                Glyph(
                    character=self.characters[symbol],
                    x=x + PART * ((column + 0.5) / columns - 0.5),
                    y=y + PART * ((row + 0.5) / rows - 0.5),
                    size=0.95 / max(rows, columns),
                    color=BLUE if symbol == answer else "black",
                    opacity=math.sqrt(probability),
                )
            )
        return found
