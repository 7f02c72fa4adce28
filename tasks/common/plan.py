"""What a run will cost, found on the meta device: nothing of the model is allocated."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from models import GridTransformer
from tasks.common.grid_config import GridConfig

# Weights, gradients, AdamW's two moments and the averaged weights, in float32.
BYTES_PER_PARAMETER = 5 * 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """Estimates for one device.

    Attributes:
        parameters: How many.
        weight_bytes: Weights, gradients, optimiser and average.
        activation_bytes: What backpropagation keeps of one segment of a batch.
        flops: Floating point operations of one optimiser step, that is, of one segment.
    """

    parameters: int
    weight_bytes: int
    activation_bytes: int
    flops: int

    def describe(self) -> str:
        """One line."""
        return (
            f"Plan: {self.parameters:,} parameters, {_bytes(self.weight_bytes)} for weights, "
            f"gradients, optimiser and average, about {_bytes(self.activation_bytes)} for "
            f"activations, {self.flops / 1e9:,.1f} GFLOP per optimiser step"
        )


def plan(config: GridConfig) -> Plan:
    """Estimate the cost of training.

    The solver is assumed to use its whole budget of free steps. Its own states and verdicts,
    and the loss, are left out: they are small beside the recorded updates.

    Args:
        config: The run.
    """
    with torch.device("meta"):
        model: Any = config.build()
        x = torch.zeros(1, config.spec().num_cells, dtype=torch.long)
        if isinstance(model, GridTransformer):
            parts = [(1, _cost(lambda: model(x).logits, config))]
            flops = parts[0][1].both
        else:
            free, recorded = config.steps_of_segment
            state = pytree.tree_map(lambda leaf: leaf.detach().clone(), model.first_state(x))
            injected = _injected(model, x).detach().requires_grad_()
            update = _cost(lambda: model.solving.module(state, injected), config)
            rest = _cost(lambda: (_injected(model, x), model.head(_answer(state))), config)
            parts = [(recorded, update), (1, rest)]
            # A solve of n steps calls its map once more, for the residual where it ends.
            flops = (free + 1) * update.forward + recorded * update.both + rest.both
    kept = sum(count * cost.kept for count, cost in parts)
    parameters = sum(p.numel() for p in model.parameters())
    return Plan(
        parameters=parameters,
        weight_bytes=BYTES_PER_PARAMETER * parameters,
        activation_bytes=config.batch_size * kept,
        flops=config.batch_size * flops,
    )


def _injected(model: Any, x: Tensor) -> Tensor:
    """What the map is given besides the state."""
    return model.encoder(x) if hasattr(model, "encoder") else model.first_state(x)


def _answer(state: Any) -> Tensor:
    return pytree.tree_leaves(state)[0]


@dataclasses.dataclass(frozen=True)
class _Cost:
    """Operations of a call, forward and with its backpropagation; bytes kept in between."""

    forward: int
    both: int
    kept: int


def _cost(call: Callable[[], Any], config: GridConfig) -> _Cost:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    with counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = pytree.tree_leaves(call())
        forward = counter.get_total_flops()
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    half = 2 if config.autocast else 1
    return _Cost(forward, counter.get_total_flops(), sum(kept.values()) // half)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
