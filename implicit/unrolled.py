"""Backpropagation through the solver's own steps: the reference for all other modes."""

from dataclasses import dataclass
from typing import ClassVar, final

from implicit.base import BackwardMode, ClosedMap, SolveContext
from implicit.registry import register
from solvers.types import State


@final
@register("unrolled")
@dataclass(frozen=True, kw_only=True)
class Unrolled(BackwardMode):
    """Record every step of the solver and differentiate what was computed.

        dL/dtheta = v^T d y_K / d theta,    y_K the solver's last iterate

    The reference: exact for the finite computation, whatever its residual, and the only
    mode in which `y0` receives a gradient. Bias against the true solution: as the forward
    error. Cost: memory and time grow with the number of steps; a Picard step records one
    call of `f`, other solvers their window too.
    """

    records_solver: ClassVar[bool] = True

    def attach(self, f: ClosedMap, y_star: State, context: SolveContext | None = None) -> State:
        """The solve was recorded: nothing to add."""
        return y_star
