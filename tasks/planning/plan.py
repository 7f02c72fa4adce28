"""What a run will cost: parameters, operations and bytes, before anything is allocated."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from implicit import Exact
from solvers.torch_internals import FakeTensorMode, pytree
from tasks.planning.anatomy import Anatomy, dissect
from tasks.planning.costs import (
    FLOAT32,
    Cost,
    Costs,
    Plannable,
    costs_of,
    optimizer_bytes,
    solver_bytes,
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Estimates for one device. Bytes are of float32 where a network does not run in bfloat16.

    Left out: padding and fragmentation of the allocator, the libraries' workspaces, what
    `--compile` saves by fusing, evaluation, the moments of the optimiser step itself, and all
    operations but products of matrices, as is usual in counts of FLOPs; causal attention counts
    in full, and its backward pass with the scores that it computes anew. A solve counts its calls
    of the map: solvers that call it more often than once a step cost more. The mode "unrolled"
    also records a solver's windows, which are not counted.

    Attributes:
        unit: "token" or "puzzle".
        units_per_sample: How many of them are in a sample.
        batch_size: Samples of an optimiser step.
        accumulate: Micro-batches that the run is told to take; 1 leaves it open.
        checkpoint: Whether the run is told to compute the backbone's activations anew.
        budget: Solver updates, at most; expected loops of a looped model.
        parameters: How many, by part.
        optimizer_bytes: The optimiser's state.
        block_parameters: Parameters of the largest block of the backbone.
        solver_bytes: What a solve holds per sample besides the map's own memory.
        slot_bytes: What the loop holds of a sample, whether or not it is in work.
        costs: Of each network.
        anatomy: The networks.
    """

    unit: str
    units_per_sample: int
    batch_size: int
    accumulate: int
    checkpoint: bool
    budget: int
    parameters: dict[str, int]
    optimizer_bytes: int
    block_parameters: int
    solver_bytes: int
    slot_bytes: int
    costs: Costs
    anatomy: Anatomy = dataclasses.field(repr=False)

    @property
    def num_parameters(self) -> int:
        """In all."""
        return sum(self.parameters.values())

    @property
    def weight_bytes(self) -> int:
        """Weights, gradients, optimiser and average."""
        return 3 * FLOAT32 * self.num_parameters + self.optimizer_bytes

    def flops(self, steps: int | None = None, checkpoint: bool = False) -> int:
        """Operations of training on one sample, in one optimiser step.

        Args:
            steps: Updates that the solve makes; by default its whole budget.
            checkpoint: The backbone's activations are computed once more in the backward pass,
                up to the last one that it needs.
        """
        costs, update = self.costs, self.costs.update
        count = costs.embed.both + costs.head.both
        count += sum(cost.both for cost in self._backbone(checkpoint))
        if update is not None:
            calls = self.anatomy.calls(self.budget if steps is None else steps)
            count += calls.free * update.forward + calls.recorded * update.both
            count += calls.products * update.product
        return count

    def kept_bytes(self, checkpoint: bool = False) -> int:
        """What backpropagation keeps of one sample, with the solver at its budget."""
        return sum(kept for kept, _ in self._timeline(checkpoint))

    def shared_bytes(self, checkpoint: bool = False) -> int:
        """What it keeps whatever the batch."""
        update = [] if self.costs.update is None else [self.costs.update]
        outer = [self.costs.embed, *update, self.costs.head]
        return sum(cost.shared for cost in (*outer, *self._backbone(checkpoint)))

    def network_bytes(self, checkpoint: bool = False) -> int:
        """Most that the networks need of one sample at one moment, the solve left aside."""
        done = most = 0
        for kept, working in self._timeline(checkpoint):
            done += kept
            most = max(most, done + working)
        return most

    def peak_bytes(self, checkpoint: bool = False) -> int:
        """Most that a sample needs at one moment of an optimiser step.

        A solve takes place after the backbone. What it holds is freed before the loss, but for
        the modes that need it, or another solve, in the backward pass.
        """
        network = self.network_bytes(checkpoint)
        if self.costs.update is None:
            return network
        before = list(self._timeline(checkpoint))[: 1 + len(self.costs.backbone)]
        solving = sum(kept for kept, _ in before) + self.costs.update.free_peak + self.solver_bytes
        held = self.solver_bytes if self._holds_solver else 0
        return max(network + held, solving)

    def describe(self) -> str:
        """One line."""
        flops = self.batch_size * self.flops(checkpoint=self.checkpoint)
        kept = self.batch_size // self.accumulate * self.kept_bytes(self.checkpoint)
        return (
            f"Plan: {self.num_parameters:,} parameters, {show_bytes(self.weight_bytes)} for "
            f"weights, gradients, optimiser and average, about "
            f"{show_bytes(self.shared_bytes(self.checkpoint) + kept)} for activations, "
            f"{flops / 1e9:,.1f} GFLOP per optimiser step"
        )

    def _backbone(self, checkpoint: bool) -> tuple[Cost, ...]:
        return self.costs.recomputed if checkpoint else self.costs.backbone

    def _timeline(self, checkpoint: bool) -> Iterator[tuple[int, int]]:
        """Bytes kept and, at the worst moment, needed besides, of each network in order.

        That moment comes in its backward pass, when those after it have let go of theirs.
        """
        costs = self.costs
        for cost in (costs.embed, *self._backbone(checkpoint)):
            yield cost.kept, cost.working
        if costs.update is not None:
            yield self.anatomy.calls(self.budget).kept * costs.update.kept, costs.update.working
        yield costs.head.kept, costs.head.working

    @property
    def _holds_solver(self) -> bool:
        """Whether a solver's memory is needed in the backward pass."""
        layer = self.anatomy.layer
        return layer is not None and (
            layer.backward_mode.needs_memory or isinstance(layer.backward_mode, Exact)
        )


def plan(config: Plannable) -> Plan:
    """Estimate the cost of training.

    Args:
        config: The run.

    Raises:
        TypeError: The model is none that can be taken apart.
        ValueError: It has no backbone whose activations could be computed anew.
    """
    with torch.device("meta"):
        model: nn.Module = config.build()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        anatomy = dissect(model)
        costs = costs_of(model, anatomy, config)
        state = anatomy.start(anatomy.embed(torch.zeros(1, config.length, dtype=torch.long)))
        shapes = [tuple(leaf.shape[1:]) for leaf in pytree.tree_leaves(state)]
    layer = anatomy.layer
    goes_on = layer is not None and config.train.segments > 1
    entries = sum(torch.Size(shape).numel() for shape in shapes) if goes_on else 0
    return Plan(
        unit=config.unit,
        units_per_sample=config.units_per_sample,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        checkpoint=config.train.checkpoint_activations,
        budget=config.train_steps,
        parameters=anatomy.parameters(model),
        optimizer_bytes=optimizer_bytes(model, config),
        block_parameters=max(
            (sum(p.numel() for p in block.parameters()) for block in anatomy.backbone), default=0
        ),
        solver_bytes=0 if layer is None else solver_bytes(layer, shapes, config.train_steps),
        # Symbols and classes are integers of eight bytes.
        slot_bytes=2 * 8 * config.length + FLOAT32 * entries,
        costs=costs,
        anatomy=anatomy,
    )


def show_bytes(count: float) -> str:
    """In a unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
