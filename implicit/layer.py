"""`FixedPointLayer`: a module whose output is the fixed point of another module."""

from typing import Any

from torch import nn

from implicit.base import BackwardMode
from implicit.fixed_point import fixed_point
from implicit.registry import MODES
from solvers import FixedPointSolver, Solution
from solvers.checks import check_callable, check_counts, check_flag
from solvers.compiler import LoopName
from solvers.options import options_of
from solvers.registry import SOLVERS
from solvers.types import State


class FixedPointLayer(nn.Module):
    """Solve y = module(y, *args) on every call.

    In training an unconverged step is normal, so `throw` is False by default: look at the
    verdicts in the `Solution` that comes back. The layer keeps nothing between calls and may be
    applied several times in one forward pass.

    Args:
        module: The map, called as `module(y, *args)`.
        solver: See `fixed_point`.
        backward: See `fixed_point`.
        max_steps: See `fixed_point`; a single call may override it.
        throw: See `fixed_point`.
        batch_dims: See `fixed_point`.
        compact: See `fixed_point`.
        independent: See `fixed_point`.
        scale: See `fixed_point`.
        has_aux: See `fixed_point`.
        loop: See `fixed_point`.

    Raises:
        ValueError: Unknown solver or backward mode, at construction.

    Example:
        >>> import torch
        >>> layer = FixedPointLayer(nn.Bilinear(2, 2, 2), solver="picard", max_steps=8)
        >>> layer(torch.zeros(3, 2), torch.zeros(3, 2)).value.shape
        torch.Size([3, 2])
    """

    @options_of(solver=SOLVERS, backward=MODES)
    def __init__(
        self,
        module: nn.Module,
        solver: str | FixedPointSolver = "anderson",
        backward: str | BackwardMode = "exact",
        max_steps: int = 50,
        throw: bool = False,
        batch_dims: int = 1,
        compact: bool = True,
        independent: bool | None = None,
        scale: Any = None,
        has_aux: bool = False,
        loop: LoopName = "auto",
    ):
        super().__init__()
        check_callable("module", module)
        check_flag("throw", throw)
        check_counts(max_steps, batch_dims)
        self.module = module
        self.solver = SOLVERS.resolve(solver)
        self.backward_mode = MODES.resolve(backward)
        self.max_steps = max_steps
        self.throw = throw
        self.batch_dims = batch_dims
        self.compact = compact
        self.independent = independent
        self.scale = scale
        self.has_aux = has_aux
        self.loop: LoopName = loop

    @options_of()
    def forward(self, y0: State, *args: Any, max_steps: int | None = None) -> Solution:
        """Solve from `y0`; `args` are per-sample tensors."""
        return fixed_point(
            self.module,
            y0,
            *args,
            solver=self.solver,
            backward=self.backward_mode,
            max_steps=self.max_steps if max_steps is None else max_steps,
            throw=self.throw,
            batch_dims=self.batch_dims,
            compact=self.compact,
            independent=self.independent,
            scale=self.scale,
            has_aux=self.has_aux,
            loop=self.loop,
        )

    def extra_repr(self) -> str:
        """The solver, the mode and the budget, as `print` shows them."""
        return f"{self.solver}, {self.backward_mode}, max_steps={self.max_steps}"
