"""Reasoners with two latents: the Attractor of the paper's puzzles, TRM, HRM and EqR.

All carry an answer y and a reasoning state z from one supervised segment to the next. They differ
in the map that a segment applies, in how often, and in which steps are recorded. So one class,
`Reasoner`, takes the map, and a solver and a backward mode determine the rest:

    Attractor   (y, z) solved to its fixed point, phantom gradient
    TRM         two applications of its cycle, then one recorded
    HRM         its cycles with the last two module calls recorded
    EqR         TRM's cycle with path noise in every call, from random starts

Legend: B batch, T cells, S symbols, D width.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from implicit import BackwardMode, FixedPointLayer, Phantom
from models.attractor import start_of
from models.grid import GridAttractor, GridOutput, GridSpec, GridTransformer, Halting
from models.published import truncated_normal_
from solvers import FixedPointSolver

Latents = tuple[Tensor, Tensor]
"""(y, z), both of the shape of the embedded question."""


class Cycle(nn.Module):
    """One network in two roles: update the reasoning `inner` times, then the answer once.

        z <- net(x + y + z)   (`inner` times),    y <- net(y + z)

    With `inner` = 1 it is the joint update whose fixed point the Attractor solves for.

    Args:
        net: Shape-preserving network.
        inner: How often z is updated; n of the paper.
        path: Called as path(old, new) after every call of `net`, it returns what takes the place
            of the new latent, such as `PathNoise`.

    References:
        A. Jolicoeur-Martineau, Less is More: Recursive Reasoning with Tiny Networks,
        arXiv:2510.04871, sec. 4 and fig. 3 (`latent_recursion`).
    """

    def __init__(self, net: nn.Module, inner: int = 6, path: nn.Module | None = None):
        super().__init__()
        self.net, self.inner, self.path = net, inner, path

    def forward(self, state: Latents, x: Tensor) -> Latents:
        """Apply the cycle once."""
        y, z = state
        for _ in range(self.inner):
            z = self._updated(z, x + y)
        return self._updated(y, z), z

    def _updated(self, latent: Tensor, injected: Tensor) -> Tensor:
        new = self.net(latent + injected)
        return new if self.path is None else self.path(latent, new)


class TwoModuleCycle(nn.Module):
    """A low module that runs `inner` times for each call of a high one.

        z <- low(z + y + x)   (`inner` times),    y <- high(y + z)

    Only the last call of either is recorded: the paper's one-step gradient.

    Args:
        low: The L-module of the paper.
        high: The H-module of the paper.
        inner: How often `low` is called; T of the paper.

    References:
        G. Wang et al., Hierarchical Reasoning Model, arXiv:2506.21734, sec. 2.
    """

    def __init__(self, low: nn.Module, high: nn.Module, inner: int = 2):
        super().__init__()
        self.low, self.high, self.inner = low, high, inner

    def forward(self, state: Latents, x: Tensor) -> Latents:
        """Apply the cycle once."""
        y, z = state
        with torch.no_grad():
            for _ in range(self.inner - 1):
                z = self.low(z + y + x)
        z = self.low(z + y + x)
        return self.high(y + z), z


class PathNoise(nn.Module):
    """Damp an update and, in training, add noise, so that a map learns to return from it.

        h <- h + (1 - damping) (new - h) + noise * eps,    eps ~ N(0, I)

    EqR does so after every call of its network, see `Cycle`. The published code adds the noise in
    evaluation as well. Here it does so on request alone, since no residual can fall below the
    noise, and an answer would not be the same twice.

    Args:
        damping: lambda of the paper, the weight kept on the old latent.
        noise: beta of the paper.

    Attributes:
        in_evaluation: Add the noise in evaluation as well.

    References:
        Equilibrium Reasoners, arXiv:2605.21488, sec. 3 (lambda = 0.05, beta = 0.01).
    """

    def __init__(self, damping: float = 0.05, noise: float = 0.01):
        super().__init__()
        self.damping, self.noise, self.in_evaluation = damping, noise, False

    def forward(self, old: Tensor, new: Tensor) -> Tensor:
        """The latent that takes the place of `new`."""
        damped = torch.lerp(new, old, self.damping)
        if not (self.training or self.in_evaluation):
            return damped
        return damped + self.noise * torch.randn_like(damped)


class Reasoner(nn.Module):
    """Answer a grid by iterating on two latents.

    Args:
        spec: The shape.
        update: The map ((y, z), x) -> (y, z).
        solver: See `implicit.fixed_point`.
        backward: See `implicit.fixed_point`. The learned start gets a gradient with "unrolled"
            only; with other modes it keeps its initial value.
        max_steps: Applications of `update` before the recorded ones; a call may override it.
        start: "learned": one vector for y and one for z, shared by all tokens. "random":
            independent standard normal entries, in training and evaluation. As published, the
            layouts "attention" and "mixer" cut both off at 2.27 standard deviations.
        halting: "right": also predict whether the answer is right: from the first token in the
            layouts "attention" and "mixer", as published, and from the mean over all tokens in
            others. "q-learning": also predict from there whether going on is worth more, as HRM
            does. In training, each pass then makes a second one from where it ends, whose
            predictions are the target.

    Raises:
        ValueError: Unknown `halting`.

    References:
        Solve the Loop: Attractor Models for Language and Reasoning, arXiv:2605.12466, sec. 5;
        and those of the updates.
    """

    def __init__(
        self,
        spec: GridSpec,
        update: nn.Module,
        solver: str | FixedPointSolver = "picard",
        backward: str | BackwardMode = "phantom",
        max_steps: int = 64,
        start: Literal["learned", "random"] = "learned",
        halting: Halting = "none",
    ):
        super().__init__()
        if halting not in get_args(Halting):
            known = ", ".join(repr(name) for name in get_args(Halting))
            raise ValueError(f"`halting` must be one of {known}, got {halting!r}.")
        self.encoder, self.head = spec.encoder(), spec.head()
        self.solving = FixedPointLayer(update, solver, backward, max_steps=max_steps)
        self.as_published = spec.as_published
        self.start = None
        if start == "learned":
            self.start = nn.Parameter(self._drawn(torch.empty(2, spec.width)))
        self.halt = None
        if halting != "none":
            self.halt = nn.Linear(spec.width, 2 if halting == "q-learning" else 1)
            # The head predicts "not right" at first: to halt at once would end all learning.
            nn.init.zeros_(self.halt.weight)
            nn.init.constant_(self.halt.bias, -5.0)

    def forward(
        self,
        x_BT: Int[Tensor, "B T"],
        *,
        start: Latents | None = None,
        fresh: Bool[Tensor, " B"] | None = None,
        max_steps: int | None = None,
    ) -> GridOutput:
        """Solve a batch of grids, from the model's start or from an earlier state.

        Args:
            x_BT: Symbols.
            start: The state to start from; by default the model's.
            fresh: Grids that start at the model's start all the same.
            max_steps: Budget of this call.
        """
        own, args = self.problem(x_BT)
        solution = self.solving(start_of(own, start, fresh), *args, max_steps=max_steps)
        state = solution.value
        halt, q_continue = (*self._halting(state[0]), None, None)[:2]
        q_next = None
        if q_continue is not None and self.training and torch.is_grad_enabled():
            q_next = self._halting_after_a_segment(state, args, max_steps)
        return GridOutput(self.read(state), state, solution, halt, q_continue, q_next)

    def _halting(self, y: Tensor) -> tuple[Float[Tensor, " B"], ...]:
        """The logits of the halting head, of which Q-learning has two; none without a head."""
        if self.halt is None:
            return ()
        token = y[:, 0] if self.as_published else y.flatten(1, -2).mean(1)
        return self.halt(token).unbind(1)

    @torch.no_grad()
    def _halting_after_a_segment(
        self, state: Latents, args: tuple[Tensor], max_steps: int | None
    ) -> tuple[Tensor, ...]:
        """The logits of the halting head after one more segment from a state."""
        steps = self.solving.max_steps if max_steps is None else max_steps
        mode = self.solving.backward_mode
        recorded = mode.steps if isinstance(mode, Phantom) else 0
        solution = self.solving(state, *args, max_steps=steps + recorded)
        return self._halting(solution.value[0])

    def read(self, state: Latents) -> Float[Tensor, "B T S"]:
        """The logits of a state."""
        return self.head(state[0])

    @property
    def trains_in_part(self) -> bool:
        """Whether a pass may leave a parameter without a gradient: the start of the solve."""
        return self.start is not None

    def problem(self, x_BT: Int[Tensor, "B T"]) -> tuple[Latents, tuple[Tensor]]:
        """Where a solve starts, and the arguments of its map."""
        x = self.encoder(x_BT)
        if self.start is None:
            return (self._drawn(x), self._drawn(x)), (x,)
        return (self.start[0].expand_as(x), self.start[1].expand_as(x)), (x,)

    def _drawn(self, like: Tensor) -> Tensor:
        """Numbers of a start that nothing is known of, in the shape of a tensor."""
        if self.as_published:
            return truncated_normal_(torch.empty_like(like))
        return torch.randn_like(like)


UPDATES: dict[str, Callable[[GridSpec], nn.Module]] = {
    "reasoner": lambda spec: Cycle(spec.network(spec.refiner_blocks), inner=1),
    "trm": lambda spec: Cycle(spec.network(spec.refiner_blocks), spec.cycles),
    "hrm": lambda spec: TwoModuleCycle(
        spec.network(spec.refiner_blocks), spec.network(spec.refiner_blocks)
    ),
    "eqr": lambda spec: Cycle(spec.network(spec.refiner_blocks), spec.cycles, PathNoise()),
}
"""The map of each reasoner by name."""


GridModel = GridAttractor | GridTransformer | Reasoner
