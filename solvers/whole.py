"""Solvers that make whole solves, instead of steps of one."""

import dataclasses
from typing import Any, ClassVar, NoReturn

from solvers.base import FixedPointSolver
from solvers.types import Flat


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeSolver(FixedPointSolver):
    """Base of solvers that override `iterate`: they make whole solves, and no `Run` steps them."""

    recordable: ClassVar[bool] = False
    whole: ClassVar[bool] = True

    def init(self, y: Flat) -> NoReturn:
        """Refused: it keeps no memory between steps."""
        raise NotImplementedError(f"{type(self).__name__} runs as a whole: call `iterate`.")

    def step(self, y: Flat, fy: Flat, carry: Any) -> NoReturn:
        """Refused: it makes no steps."""
        raise NotImplementedError(f"{type(self).__name__} runs as a whole: call `iterate`.")
