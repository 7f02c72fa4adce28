"""The Attractor wrapper: a backbone proposes y0, and the fixed point of a refiner is the output.

    y0 = backbone(x),    y* = refiner(y*, y0)

Both networks may be any modules; the solver and the gradient come from `implicit`.
"""

import dataclasses
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from implicit import BackwardMode, FixedPointLayer, Solution
from implicit.registry import MODES
from solvers import FixedPointSolver, Result
from solvers.checks import check_at_least_0, check_callable, check_integer
from solvers.counted_map import FROM_MAP
from solvers.options import options_of
from solvers.registry import SOLVERS
from solvers.solution import HoldsValue
from solvers.torch_internals import pytree
from solvers.types import State

Start = Literal["proposal", "zeros", "noise"]
CALLS = (
    "In an Attractor, `y0` is what the backbone returns, and `f` is the refiner, called as "
    "refiner(y, y0). A backbone that returns more, as `nn.GRU` returns its last state, needs a "
    "module around it that returns the proposal alone."
)


@dataclasses.dataclass(frozen=True)
class AttractorOutput(HoldsValue):
    """The result of one pass of an `Attractor`.

    Attributes:
        value: The equilibrium y*, with its gradient.
        proposal: The backbone's y0, of the same structure and shapes.
        solution: The evidence: residual, verdict and steps per sample.
    """

    value: State
    proposal: State
    solution: Solution


class Attractor(nn.Module):
    """Refine a backbone's proposal to a fixed point.

    Args:
        backbone: Any module x -> y0; `y0` is a tensor or a pytree with leading batch dims.
        refiner: Any module (y, y0) -> y that keeps structure and shapes.
        solver: See `implicit.fixed_point`.
        backward: See `implicit.fixed_point`. The paper uses "jacobian_free" for language
            and "phantom" for puzzles.
        max_steps: Budget of updates; a single call may override it.
        batch_dims: Leading dims of `y0` that index samples.
        start_noise: In training, normal noise of this standard deviation is added to the start
            of a solve that starts at the proposal (and not to y0, which the refiner gets).
        start: Where a solve starts unless the call says so: at the proposal, at zeros, or at
            standard normal noise.

    Raises:
        ValueError: Unknown solver, backward mode or start.

    References:
        Solve the Loop: Attractor Models for Language and Reasoning, arXiv:2605.12466, sec. 3.

    Example:
        >>> class Pull(nn.Module):
        ...     def forward(self, y, y0):
        ...         return 0.5 * torch.tanh(y) + y0
        >>> model = Attractor(nn.Linear(4, 8), Pull())
        >>> out = model(torch.ones(2, 4))
        >>> out.value.shape, out.solution.converged.tolist()
        (torch.Size([2, 8]), [True, True])
        >>> torch.equal(model(torch.ones(2, 4), max_steps=0).value, out.proposal)
        True
    """

    @options_of(solver=SOLVERS, backward=MODES)
    def __init__(
        self,
        backbone: nn.Module,
        refiner: nn.Module,
        solver: str | FixedPointSolver = "anderson",
        backward: str | BackwardMode = "jacobian_free",
        max_steps: int = 50,
        batch_dims: int = 1,
        start_noise: float = 0.0,
        start: Start = "proposal",
    ):
        super().__init__()
        if start not in get_args(Start):
            known = ", ".join(map(repr, get_args(Start)))
            raise ValueError(f"`start` must be one of {known}, got {start!r}.")
        check_callable("backbone", backbone)
        check_callable("refiner", refiner)
        check_at_least_0("start_noise", start_noise)
        self.backbone, self.start_noise, self.start = backbone, start_noise, start
        self.refiner = FixedPointLayer(
            refiner, solver, backward, max_steps=max_steps, batch_dims=batch_dims
        )

    @property
    def solving(self) -> FixedPointLayer:
        """The layer that solves: its solver may be replaced after training."""
        return self.refiner

    @options_of()
    def forward(
        self,
        x: Any,
        *,
        max_steps: int | None = None,
        start: State | None = None,
        fresh: Tensor | None = None,
    ) -> AttractorOutput:
        """Propose a start and refine it to a fixed point.

        Args:
            x: Whatever the backbone takes.
            max_steps: Budget of this call. 0 removes the solver: the refiner is not called,
                `value` is the proposal, and no residual is measured (NaN).
            start: Where the solve starts; the proposal by default. It gets no gradient.
            fresh: Shape (*batch,), bool: samples that start at the proposal all the same.

        Returns:
            Value, proposal and evidence.
        """
        try:
            proposal = self.backbone(x)
        except FROM_MAP as error:
            error.add_note(_of_backbone(self.backbone, x))
            raise
        return self.refine(proposal, max_steps=max_steps, start=start, fresh=fresh)

    def refine(
        self,
        proposal: State,
        *args: Any,
        max_steps: int | None = None,
        start: State | None = None,
        fresh: Tensor | None = None,
    ) -> AttractorOutput:
        """Refine a given proposal; `args` are passed to the refiner after it."""
        budget = self.refiner.max_steps if max_steps is None else max_steps
        check_integer("max_steps", budget, 0)
        if budget == 0:
            return AttractorOutput(proposal, proposal, _unsolved(proposal, self.refiner.batch_dims))
        first = start_of(self._first(proposal), start, fresh)
        try:
            solution = self.refiner(first, proposal, *args, max_steps=max_steps)
        except (TypeError, ValueError) as error:
            error.add_note(CALLS)
            raise
        return AttractorOutput(solution.value, proposal, solution)

    def _first(self, proposal: State) -> State:
        if self.start == "zeros":
            return pytree.tree_map(torch.zeros_like, proposal)
        if self.start == "noise":
            return pytree.tree_map(torch.randn_like, proposal)
        if not (self.training and self.start_noise):
            return proposal
        return pytree.tree_map(lambda y: y + self.start_noise * torch.randn_like(y), proposal)


def _of_backbone(backbone: Any, x: Any) -> str:
    """What a backbone that fails was called with, and what it is made of."""
    from solvers.call_errors import described  # most programs never need it

    weight = next(backbone.parameters(), None) if isinstance(backbone, nn.Module) else None
    made = "" if weight is None else f"; its first weight is {described(weight)}"
    return (
        f"The backbone was called as backbone(x), with x = {described(x)}{made}. Pass an `x` of "
        "the shape, dtype and device that it takes, or convert it, as by `backbone.to(x.dtype)`."
    )


def start_of(own: State, start: State | None, fresh: Tensor | None) -> State:
    """Where a solve starts: at `start` if there is one, but at a model's own for `fresh` samples.

    Args:
        own: Where the model would start.
        start: Of the same structure and shapes.
        fresh: Shape (*batch,), bool.
    """
    if start is None or fresh is None:
        return own if start is None else start
    if not (isinstance(fresh, Tensor) and fresh.dtype == torch.bool):
        raise TypeError(
            f"`fresh` must be a tensor of dtype bool, with an entry per sample: got {fresh!r}."
        )

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(fresh.view(*fresh.shape, *[1] * (new.ndim - fresh.ndim)), new, old)

    return pytree.tree_map(choose, own, start)


def _unsolved(proposal: State, batch_dims: int) -> Solution:
    """The solution without a solve: no step, no evaluation, and residuals of NaN."""
    leaf = pytree.tree_leaves(proposal)[0]
    if not isinstance(leaf, Tensor):
        raise TypeError(
            "The backbone must return a tensor or a pytree of tensors: got "
            f"{type(leaf).__name__}. Is a `return` missing?"
        )
    shape, device = leaf.shape[:batch_dims], leaf.device
    return Solution(
        value=proposal,
        residual=torch.full(shape, float("nan"), device=device),
        result=torch.full(shape, int(Result.max_steps), dtype=torch.int8, device=device),
        num_steps=torch.zeros(shape, dtype=torch.int64, device=device),
        num_evals=0,
        rows_evaluated=0,
    )
