"""One real training step on fake tensors: its operations and its memory, with nothing allocated.

The model, the loss, the backward pass and the optimiser are the trainer's own. Fake tensors have
shapes and no numbers, so two things are put in their place. `PlainSteps` stands in for the solver:
it calls the map as often as the step budget allows, in the forward and in the adjoint solve. And
`Assumed` answers where a program reads a number. No model and no backward mode is known by name.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol, final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from implicit import FixedPointLayer
from models import checkpoint_activations
from solvers import FixedPointSolver, Solution, solve
from solvers.torch_internals import FakeTensorMode, TorchDispatchMode, cpu_attention, pytree
from tasks.common.micro_batches import forward
from tasks.common.optimizers import build_optimizers
from tasks.common.peak_memory import PeakMemory

FLOAT32 = 4
# A solver's memory is measured on states of so many numbers, and of twice as many.
PROBE_ENTRIES, PROBE_ROWS = 256, 16


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(_: Any, q: Any, k: Any, v: Any, *__: Any, **___: Any) -> int:
    # The cotangent has no shape to be read where it is zero.
    return sdpa_backward_flop_count((*q[:-1], v[-1]), q, k, v)


# Attention as a CPU computes it: torch's counter has a formula, but leaves this kernel out.
ATTENTION_FORWARD, ATTENTION_BACKWARD = cpu_attention()
ATTENTION: dict[Any, Any] = {
    ATTENTION_FORWARD: _attention,
    ATTENTION_BACKWARD: _attention_backward,
}


class Plannable(Protocol):
    """What a plan needs of a configuration, besides what the optimisers and the loss read."""

    # What is counted: "token" or "puzzle".
    unit: ClassVar[str]

    @property
    def units_per_sample(self) -> int:
        """How many of them a row of the batch is."""
        ...

    @property
    def length(self) -> int:
        """Inputs of a row."""
        ...

    @property
    def train_steps(self) -> int:
        """Budget of solver updates, or their number."""
        ...

    @property
    def batch_size(self) -> int:
        """Rows of an optimiser step."""
        ...

    @property
    def accumulate(self) -> int:
        """Micro-batches of a process's share of the rows."""
        ...

    @property
    def checkpoint_activations(self) -> bool:
        """Compute the activations of the backbone's blocks anew."""
        ...

    @property
    def segments(self) -> int:
        """Optimiser steps of a sample; a state goes from one to the next."""
        ...

    @property
    def autocast(self) -> bool:
        """Run networks in bfloat16."""
        ...

    @property
    def clip(self) -> float:
        """Largest gradient norm."""
        ...

    @property
    def loss(self) -> str:
        """See `answer_loss`."""
        ...

    def build(self) -> Any:
        """The model."""
        ...


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What the passes of a micro-batch cost. Bytes leave weights and their gradients out.

    Attributes:
        flops: Operations of the forward and the backward pass.
        kept: Bytes alive when the backward pass begins, without the solver's memory.
        peak: Bytes alive at the worst moment.
        networks: The same without the solver's memory.
        solver: Bytes that the solver holds.
        state: Bytes of the state that the next segment goes on from; 0 if nothing is solved.
    """

    flops: int
    kept: int
    peak: int
    networks: int
    solver: int
    state: int


class FakeTraining:
    """A training run whose tensors are fake: the trainer's own passes and its update, measured.

    Args:
        config: The run.
        checkpoint: Whether the activations of the backbone are computed anew.

    Raises:
        ValueError: They are to be, and the model has no backbone.
    """

    def __init__(self, config: Plannable, checkpoint: bool) -> None:
        self.config = config
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.device("meta"):
            self.model: nn.Module = config.build()
        if checkpoint:
            checkpoint_activations(self.model)
        with self.mode:
            self.model.to_empty(device="cpu").train()
        self.layers = [m for m in self.model.modules() if isinstance(m, FixedPointLayer)]
        self.memories = [SolverMemory.of(layer.solver, config.train_steps) for layer in self.layers]
        self._known: dict[tuple[int, int], StepCost] = {}

    def passes(self, batch: int, steps: int) -> StepCost:
        """Forward, loss and backward, of one micro-batch; measured once, then known.

        Args:
            batch: Its samples.
            steps: Updates that each solve makes, or the length of a loop that is drawn.
        """
        if (batch, steps) not in self._known:
            self._known[batch, steps] = self._passes(batch, steps)
        return self._known[batch, steps]

    def _passes(self, batch: int, steps: int) -> StepCost:
        held: list[int] = []
        with self.mode:
            x = torch.zeros(batch, self.config.length, dtype=torch.long)
            # Earlier micro-batches have left gradients.
            self._set_gradients(self.config.accumulate > 1)
            owned = [x, *self.model.parameters(), *self.model.buffers(), *_gradients(self.model)]
            networks, live, counter = PeakMemory(owned), PeakMemory(owned), flop_counter()

            def hold(memory: Tensor) -> None:
                held.append(memory.nbytes)
                networks.forget(memory)

            for layer, memory in zip(self.layers, self.memories, strict=True):
                _solve_plainly(layer, PlainSteps(memory=memory, hold=hold))
            apart = _gradients_apart(self.model, [networks, live])
            with apart, counter, networks, live, Assumed(largest=steps):
                loss, outcome, state = forward(self.model, x, x, self.config, max_steps=steps)
                kept = networks.now
                loss.backward()
        goes_on = outcome.solve is not None and self.config.segments > 1
        return StepCost(
            flops=counter.get_total_flops(),
            kept=kept,
            peak=live.peak,
            networks=networks.peak,
            solver=max(held, default=0),
            state=_size(pytree.tree_leaves(state)) if goes_on else 0,
        )

    def update(self) -> tuple[int, int]:
        """Bytes of the optimiser's state, and what clipping and an update need besides."""
        model, config = self.model, self.config
        with self.mode:
            optimizers = build_optimizers(model, config)
            self._set_gradients(True)
            for optimizer in optimizers:
                optimizer.step()  # the first one makes the state
            leaves = pytree.tree_leaves([dict(optimizer.state) for optimizer in optimizers])
            state = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            with PeakMemory([*model.parameters(), *_gradients(model), *state]) as live:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                for optimizer in optimizers:
                    optimizer.step()
        return _size(state), live.peak

    def _set_gradients(self, there: bool) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if there else None


@dataclasses.dataclass(frozen=True)
class SolverMemory:
    """Bytes that a solver holds of a sample besides its point and the value there.

    Attributes:
        fixed: Whatever the size of the sample's state.
        each: For each number of it.
    """

    fixed: float
    each: float

    @classmethod
    def of(cls, solver: FixedPointSolver, steps: int) -> "SolverMemory":
        """Measured at the peak of real solves of a map that costs little, on small states."""
        small, large = (_solver_peak(solver, steps, n * PROBE_ENTRIES) for n in (1, 2))
        each = (large - small) / PROBE_ENTRIES
        # The map's own image and the tensor before it are the network's.
        return cls(fixed=max(0.0, small - each * PROBE_ENTRIES), each=max(0.0, each - 2 * FLOAT32))

    def of_state(self, y: Any, batch_dims: int) -> int:
        """Bytes for a batch of these states."""
        leaves = pytree.tree_leaves(y)
        samples = leaves[0].shape[:batch_dims].numel()
        return round(samples * self.fixed + self.each * sum(leaf.numel() for leaf in leaves))


def _solver_peak(solver: FixedPointSolver, steps: int, entries: int) -> float:
    """Bytes for each sample of a solve that uses its whole budget."""
    solver = dataclasses.replace(solver, rtol=0.0, atol=0.0)
    generator = torch.Generator().manual_seed(0)
    y0 = torch.randn(PROBE_ROWS, entries, generator=generator)
    with PeakMemory([y0]) as live:
        solve(_cheap, y0, y0, solver=solver, max_steps=steps, throw=False)
    return live.peak / PROBE_ROWS


def _cheap(y: Tensor, x: Tensor) -> Tensor:
    return torch.sin(x - 0.5 * y)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainSteps(FixedPointSolver):
    """In place of a solver: call the map, record what it would, and hold as much memory.

    It makes all the updates of its budget, reads no number, and reports that all is well.

    Attributes:
        memory: Of the solver that it stands in for.
        hold: Told of the tensor that takes up that memory.
    """

    estimates_inverse: ClassVar[bool] = True

    memory: SolverMemory = SolverMemory(0.0, 0.0)
    hold: Callable[[Tensor], None] = lambda _: None

    def init(self, y: Tensor) -> None:
        """Nothing to remember."""

    def step(self, y: Tensor, fy: Tensor, carry: None) -> tuple[Tensor, None]:
        """The plain update."""
        return fy, None

    def iterate(
        self,
        f: Callable[..., Any],
        y0: Any,
        args: tuple[Any, ...] = (),
        *,
        max_steps: int,
        batch_dims: int = 1,
        memory: list[tuple[Tensor, Any]] | None = None,
        **_: Any,
    ) -> Solution:
        """Make the updates, and one call more to measure the residual."""
        held = Held(torch.empty(self.memory.of_state(y0, batch_dims), dtype=torch.uint8))
        self.hold(held.memory)

        def call(y: Any) -> Any:
            return pytree.tree_map(lambda new, old: new.to(old.dtype), f(y, *args), y)

        y = y0
        for _ in range(max_steps):
            y = call(y)
        norms = pytree.tree_map(lambda a, b: _norm(a - b, batch_dims), call(y), y)
        residual = torch.stack(pytree.tree_leaves(norms)).sum(0)
        if memory is not None:
            memory.append((torch.arange(residual.numel()), held))
        return Solution(
            value=y,
            residual=residual,
            result=torch.zeros_like(residual, dtype=torch.int8, requires_grad=False),
            # A single number, whose value fake tensors know.
            num_steps=torch.tensor([max_steps]),
            num_evals=max_steps + 1,
            rows_evaluated=0,
        )


def _norm(difference: Tensor, batch_dims: int) -> Tensor:
    return torch.linalg.vector_norm(difference.reshape(*difference.shape[:batch_dims], -1), dim=-1)


@dataclasses.dataclass(frozen=True)
class Held:
    """A solver's memory as `PlainSteps` leaves it to modes that use it in the backward pass."""

    memory: Tensor

    def transposed_inverse(self, v: Tensor) -> Tensor:
        """Some tensor of the same shape."""
        return v.clone()


def _solve_plainly(layer: FixedPointLayer, solver: PlainSteps) -> None:
    layer.solver = solver
    if getattr(layer.backward_mode, "solver", None) is not None:
        # By default an adjoint equation goes to the forward solver.
        layer.backward_mode = dataclasses.replace(layer.backward_mode, **{"solver": solver})


class Assumed(TorchDispatchMode):
    """What a program reads of fake tensors, which have no numbers.

    Nothing odd happens in a planned step: where the question is whether any entry is set, as in
    `failed.any()`, the answer is no; the largest entry of a tensor, such as the longest loop of a
    batch, is given; and everything else that is read, such as `converged.all()`, is one.

    Args:
        largest: Answer to `x.max()`.
    """

    def __init__(self, largest: int) -> None:
        super().__init__()
        self.answers = {torch.ops.aten.any.default: 0, torch.ops.aten.max.default: largest}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, or answer in its place."""
        if func._overloadpacket is ATTENTION_BACKWARD and args[0] is None:
            # Without a cotangent the kernel computes nothing; as a fake one it returns zeros.
            return None, None, None
        reads = func is torch.ops.aten._local_scalar_dense.default
        try:
            out = func(*args, **(kwargs or {}))
            if func in self.answers:
                out.item()
        except RuntimeError:  # torch has no public name for "this depends on the data"
            if reads:
                return 1
            if func not in self.answers:
                raise
            return torch.tensor(self.answers[func], dtype=out.dtype)
        return out


def flop_counter() -> FlopCounterMode:
    """Torch's counter, which also counts attention as a CPU computes it."""
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    # Its tracker refuses modules that are called within a backward pass, as an adjoint solve does.
    counter.mod_tracker = _Untracked()  # type: ignore[assignment]
    return counter


class _Untracked(contextlib.AbstractContextManager[None]):
    parents = frozenset({"Global"})

    def __exit__(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def _gradients_apart(model: nn.Module, memories: Sequence[PeakMemory]) -> Iterator[None]:
    """Count a gradient no more once it is a parameter's `grad`."""

    def forget(parameter: Tensor) -> None:
        assert parameter.grad is not None
        for memory in memories:
            memory.forget(parameter.grad)

    hooks = [p.register_post_accumulate_grad_hook(forget) for p in model.parameters()]
    yield
    for hook in hooks:
        hook.remove()


def _gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
