"""One real training step on fake tensors: its operations and its memory, with nothing allocated.

The model, the loss, the backward pass and the optimiser are the trainer's own; the solver alone is
replaced, by one that calls the map as often as the budget allows, in the forward and in the adjoint
solve. No model and no backward mode is known here by name.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from implicit import FixedPointLayer
from solvers.torch_internals import FakeTensorMode, cpu_attention, pytree
from tasks.planning.peak_memory import PeakMemory
from tasks.planning.stand_ins import Assumed, PlainSteps, SolverMemory, solve_plainly
from tasks.training.micro_batches import forward
from tasks.training.optimizers import build_optimizers
from tasks.training.options import Config


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(_: Any, q: Any, k: Any, v: Any, *__: Any, **___: Any) -> int:
    # The cotangent has no shape to be read where it is zero.
    return sdpa_backward_flop_count((*q[:-1], v[-1]), q, k, v)


# Attention as a CPU computes it: torch's counter has a formula, but leaves this kernel out.
ATTENTION: dict[Any, Any] = dict(
    zip(cpu_attention(), (_attention, _attention_backward), strict=True)
)


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
        model: The network, on the "meta" device.
        config: The run.
    """

    def __init__(self, model: nn.Module, config: Config) -> None:
        self.model, self.config = model, config
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
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
            self._set_gradients(self.config.train.accumulate > 1)
            owned = [x, *self.model.parameters(), *self.model.buffers(), *_gradients(self.model)]
            live, counter = PeakMemory(owned), flop_counter()

            def hold(memory: Tensor) -> None:
                held.append(memory.nbytes)
                live.set_aside(memory)

            for layer, memory in zip(self.layers, self.memories, strict=True):
                solve_plainly(layer, PlainSteps(memory=memory, hold=hold))
            apart = _gradients_apart(self.model, live)
            with apart, counter, live, Assumed(largest=steps):
                loss, outcome, state = forward(self.model, x, x, self.config.train, max_steps=steps)
                kept = live.now - live.aside
                loss.backward()
        goes_on = outcome.solve is not None and self.config.train.segments > 1
        return StepCost(
            flops=counter.get_total_flops(),
            kept=kept,
            peak=live.peak,
            networks=live.peak_without,
            solver=max(held, default=0),
            state=_size(pytree.tree_leaves(state)) if goes_on else 0,
        )

    @functools.cached_property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimiser's state."""
        return _size(self._states())

    @functools.cached_property
    def update_bytes(self) -> int:
        """What clipping and the optimiser need in an update, besides its state."""
        parameters, states = list(self.model.parameters()), self._states()
        with self.mode:
            self._set_gradients(True)
            with PeakMemory([*parameters, *_gradients(self.model), *states]) as live:
                nn.utils.clip_grad_norm_(parameters, self.config.train.clip)
                for optimizer in self._optimizers:
                    optimizer.step()
        return live.peak

    @functools.cached_property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        with self.mode:
            optimizers = build_optimizers(self.model, self.config)
            self._set_gradients(True)
            for optimizer in optimizers:
                optimizer.step()  # the first one makes the state
        return optimizers

    def _states(self) -> list[Tensor]:
        leaves = pytree.tree_leaves([dict(optimizer.state) for optimizer in self._optimizers])
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def _set_gradients(self, there: bool) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if there else None


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
def _gradients_apart(model: nn.Module, live: PeakMemory) -> Iterator[None]:
    """Count a gradient no more once it is a parameter's `grad`."""

    def forget(parameter: Tensor) -> None:
        assert parameter.grad is not None
        live.forget(parameter.grad)

    hooks = [p.register_post_accumulate_grad_hook(forget) for p in model.parameters()]
    yield
    for hook in hooks:
        hook.remove()


def _gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
