"""What one call of each network costs, found with fake tensors: nothing is allocated.

A network is called on tensors that have a shape and no data, and torch's own counters tell its
floating point operations and what backpropagation keeps, at batches of two and of three samples:
what grows between them is the cost of a sample, the rest is shared.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from models import checkpoint_activations, recomputes
from solvers import FixedPointSolver
from solvers.torch_internals import cpu_attention, pytree, storage_id
from tasks.planning.anatomy import Anatomy
from tasks.planning.peak_memory import PeakMemory
from tasks.training.loss import answer_loss
from tasks.training.optimizers import build_optimizers

FLOAT32 = 4
# A solver's memory is measured on states of at most so many numbers.
PROBE_ENTRIES, PROBE_ROWS = 1024, 16


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(_: Any, q: Any, k: Any, v: Any, *__: Any, **___: Any) -> int:
    # The cotangent has no shape to be read where it is zero.
    return sdpa_backward_flop_count((*q[:-1], v[-1]), q, k, v)


# Attention as a CPU computes it: torch's counter has a formula, but leaves this kernel out.
ATTENTION: dict[Any, Any] = dict(
    zip(cpu_attention(), (_attention, _attention_backward), strict=True)
)


class Plannable(Protocol):
    """What a plan needs of a configuration."""

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
    def train(self) -> Any:
        """Options of training; see `TrainOptions`."""
        ...

    def build(self) -> Any:
        """The model."""
        ...


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one call of a network costs, per sample.

    Attributes:
        forward: Floating point operations of a call.
        both: The same with its backpropagation.
        product: Of a product with the transposed Jacobian; 0 where it was not asked for.
        inputs: Bytes of its input.
        kept: Bytes that backpropagation keeps; without the network's own weights. A network that
            computes its activations anew keeps its input, and what else is alive after the call.
        peak: Bytes that are alive at the worst moment of a recorded call and its backpropagation,
            besides the input.
        free_peak: Likewise of a call that records nothing.
        shared: Bytes kept whatever the batch, such as weights cast to bfloat16.
    """

    forward: int
    both: int
    product: int
    inputs: int
    kept: int
    peak: int
    free_peak: int
    shared: int

    @property
    def working(self) -> int:
        """What is needed in the worst moment besides what is kept."""
        return max(0, self.peak + self.inputs - self.kept)


def optimizer_bytes(model: nn.Module, config: Any) -> int:
    """AdamW has two moments of every parameter, Muon one of those that are its own."""
    count = 0
    for optimizer in build_optimizers(model, config):
        moments = 1 if isinstance(optimizer, torch.optim.Muon) else 2
        for group in optimizer.param_groups:
            count += moments * sum(p.nbytes for p in group["params"])
    return count


def solver_bytes(layer: Any, shapes: list[tuple[int, ...]], steps: int) -> int:
    """Peak of a real solve, of a map that costs little, on small states; per sample."""
    solver: FixedPointSolver = dataclasses.replace(layer.solver, rtol=0.0, atol=0.0)
    entries = sum(torch.Size(shape[layer.batch_dims - 1 :]).numel() for shape in shapes)
    rows = sum(torch.Size(shape).numel() for shape in shapes) // entries
    few = min(entries, PROBE_ENTRIES)
    generator = torch.Generator().manual_seed(0)
    y0 = torch.randn(PROBE_ROWS, few, generator=generator)
    with torch.no_grad(), PeakMemory() as live:
        solver.iterate(lambda y, x: torch.sin(x - 0.5 * y), y0, (y0,), max_steps=steps)
    # The map's own image and the tensor before it are the network's, which has been measured.
    per_row = live.peak / PROBE_ROWS - 2 * FLOAT32 * few
    return max(0, round(rows * per_row * entries / few))


@dataclasses.dataclass(frozen=True)
class Costs:
    """What each network of a model costs, per sample.

    Attributes:
        embed: The embedding.
        backbone: Each block.
        recomputed: Each block if it computes its activations anew.
        update: The map that is solved; None without one.
        head: Head and loss.
    """

    embed: Cost
    backbone: tuple[Cost, ...]
    recomputed: tuple[Cost, ...]
    update: Cost | None
    head: Cost


def costs_of(model: nn.Module, anatomy: Anatomy, config: Plannable) -> Costs:
    """Costs of a model of fake parameters, to be called in a `FakeTensorMode`.

    It is left with activation checkpointing.

    Raises:
        ValueError: The configuration wants that, and the model has no backbone.
    """
    # A batch of one would not do: where another one is copied, it may be only viewed.
    batches = (2, 3)
    measured = [_measure(model, anatomy, config, batch) for batch in batches]
    embed, *inner, head = (_per_sample(*pair) for pair in zip(*measured, strict=True))
    if anatomy.backbone or config.train.checkpoint_activations:
        checkpoint_activations(model)
    again = [_measure_backbone(model, anatomy, config, batch) for batch in batches]
    blocks = len(anatomy.backbone)
    return Costs(
        embed=embed,
        backbone=tuple(inner[:blocks]),
        recomputed=tuple(_per_sample(*pair) for pair in zip(*again, strict=True)),
        update=inner[blocks] if anatomy.update is not None else None,
        head=head,
    )


def _measure(model: nn.Module, anatomy: Anatomy, config: Plannable, batch: int) -> list[Cost]:
    """Costs of a whole batch, for networks in the order of a step."""
    ids = torch.zeros(batch, config.length, dtype=torch.long)
    cost = _meter(model, config)

    def loss(state: Any) -> Tensor:
        logits = anatomy.head(state)
        return answer_loss(logits, ids.expand(logits.shape[:-1]), config.train.loss)

    costs = [cost(anatomy.embed, ids), *_measure_backbone(model, anatomy, config, batch)]
    h = _embedded(anatomy, config, batch)
    state = pytree.tree_map(lambda t: t.detach().clone().requires_grad_(), anatomy.start(h))
    if anatomy.update is not None:
        exact = anatomy.layer is not None and anatomy.calls(1).products > 0
        costs.append(cost(anatomy.update, state, h, product=exact))
    return [*costs, cost(loss, state)]


def _measure_backbone(
    model: nn.Module, anatomy: Anatomy, config: Plannable, batch: int
) -> list[Cost]:
    """Of each block; those of one make cost the same."""
    cost, h = _meter(model, config), _embedded(anatomy, config, batch)
    makes = [
        (type(block), *((name, p.shape) for name, p in block.named_parameters()))
        for block in anatomy.backbone
    ]
    first = dict(zip(makes, anatomy.backbone, strict=True))
    known = {make: cost(block, h) for make, block in first.items()}
    return [known[make] for make in makes]


def _embedded(anatomy: Anatomy, config: Plannable, batch: int) -> Tensor:
    with _autocast(config.train.autocast):
        h = anatomy.embed(torch.zeros(batch, config.length, dtype=torch.long))
    return h.detach().requires_grad_()


def _meter(model: nn.Module, config: Plannable) -> Callable[..., Cost]:
    owned = [*model.parameters(), *model.buffers()]

    def cost(call: Callable[..., Any], *inputs: Any, product: bool = False) -> Cost:
        model.zero_grad()
        return _run(call, inputs, owned, config.train.autocast, product)

    return cost


def _run(
    call: Callable[..., Any], inputs: Any, owned: list[Tensor], autocast: bool, product: bool
) -> Cost:
    """Call once without recording, and once with backpropagation."""
    kept: dict[int, int] = {}
    weights = set(map(storage_id, owned))

    def keep(tensor: Tensor) -> Tensor:
        if storage_id(tensor) not in weights:
            kept[storage_id(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.no_grad(), _autocast(autocast), PeakMemory() as free:
        call(*inputs)
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    with counter, PeakMemory([*owned, *pytree.tree_leaves(inputs)]) as live:
        with _autocast(autocast), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            outputs = pytree.tree_leaves(call(*inputs))
        forward = counter.get_total_flops()
        left = live.now - sum(output.untyped_storage().nbytes() for output in outputs)
        recorded = [output for output in outputs if output.requires_grad]
        for output in outputs:
            if not output.requires_grad:
                keep(output)
        torch.autograd.backward(recorded, [torch.ones_like(output) for output in recorded])
    both = counter.get_total_flops()
    size = sum(t.nbytes for t in pytree.tree_leaves(inputs))
    return Cost(
        forward=forward,
        both=both,
        product=_product(call, inputs, autocast) if product else 0,
        inputs=size,
        kept=size + left if recomputes(call) else sum(kept.values()),
        peak=live.peak,
        free_peak=free.peak,
        shared=0,
    )


def _product(call: Callable[..., Any], inputs: Any, autocast: bool) -> int:
    """Operations of a cotangent's way from the output back to the first input alone."""
    with _autocast(autocast):
        outputs = pytree.tree_leaves(call(*inputs))
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        cotangents = [torch.ones_like(output) for output in outputs]
        torch.autograd.grad(outputs, pytree.tree_leaves(inputs[0]), cotangents)
    return counter.get_total_flops()


def _per_sample(two: Cost, three: Cost) -> Cost:
    """Of a sample, from batches of two and three."""
    names = [field.name for field in dataclasses.fields(Cost)]
    grown = {name: getattr(three, name) - getattr(two, name) for name in names}
    return Cost(**grown | {"shared": two.kept - 2 * grown["kept"]})


def _autocast(enabled: bool) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)
