"""Backpropagation through the solver's own steps: the reference for all other modes."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch.utils.checkpoint

from implicit.base import BackwardMode, ClosedMap, SolveContext
from solvers.types import Map, State


@final
@dataclass(frozen=True, kw_only=True)
class Unrolled(BackwardMode):
    """Record every step of the solver and differentiate what was computed.

        dL/dtheta = v^T d y_K / d theta,    y_K the solver's last iterate

    The reference: exact for the finite computation, whatever its residual, and the only
    mode in which `y0` receives a gradient. Bias with respect to the true solution: of the
    order of the forward error. Cost: memory and time grow with the number of steps; a Picard
    step records one call of `f`, other solvers also their window.

    Args:
        checkpoint: Keep only the states, and call `f` once more per step in the backward
            pass: memory for activations of one call instead of all.

    References:
        T. Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
    """

    fits_graph: ClassVar[bool] = False

    checkpoint: bool = False

    def recorded(self, f: Map) -> Map:
        """Return the map that the solver calls: `f`, or `f` recomputed in the backward pass."""
        if not self.checkpoint:
            return f

        def rerun(y: State, *args: Any) -> State:
            return torch.utils.checkpoint.checkpoint(f, y, *args, use_reentrant=False)

        return rerun

    def attach(self, f: ClosedMap, y_star: State, context: SolveContext | None = None) -> State:
        """Return `y_star` as it is, since the solve has been recorded."""
        return y_star
