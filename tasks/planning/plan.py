"""What a run will cost: parameters, operations and bytes, before anything is allocated."""

import dataclasses
import functools

import torch
from torch import nn

from implicit import FixedPointLayer
from models import modules_used_once, recompute_activations, recomputes
from tasks.planning.stand_ins import FLOAT32
from tasks.planning.step import FakeTraining, StepCost
from tasks.training.options import Config

# A batch of one would not do: where another one is copied, it may be only viewed.
FEW_SAMPLES = 2
# The cost of a solve is affine in the number of its steps: few of them, and one more, show all.
FEW_STEPS = 1


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Bytes for a micro-batch.

    Attributes:
        shared: Whatever its size, such as weights cast to bfloat16.
        each: For each sample.
    """

    shared: int
    each: int

    def of(self, samples: int) -> int:
        """For so many samples."""
        return self.shared + samples * self.each


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the passes of training cost, with the solver at its budget; see `StepCost`.

    Attributes:
        flops: Operations for a sample.
    """

    flops: int
    kept: Bytes
    peak: Bytes
    networks: Bytes
    solver: Bytes
    state: Bytes


class Plan:
    """Estimates for one device. Bytes are of float32 where a network does not run in bfloat16.

    They come from the trainer's own step on fake tensors, see `tasks.planning.step`; each way of
    running is measured when it is first asked for.

    Left out: padding and fragmentation of the allocator, the libraries' workspaces, what
    `--compile` saves by fusing, evaluation, and all operations but products of matrices, as is
    usual in counts of FLOPs, and those of the optimiser; causal attention counts in full, and its
    backward pass with the scores that it computes anew. A solve counts its calls of the map:
    solvers that call it more often than once a step cost more. The adjoint solve of "exact" is
    taken to use its whole budget. The mode "unrolled" also records a solver's windows, which are
    not counted.

    Attributes:
        parameters: How many, by part; see `parts`.
        block_parameters: Parameters of the largest block of the backbone.
        solves: Whether the model solves for a fixed point.

    Raises:
        ValueError: It is to compute the activations of a backbone anew, and has none.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        model = _meta(config)
        self.solves = any(isinstance(module, FixedPointLayer) for module in model.modules())
        blocks = backbone(model, required=config.train.checkpoint_activations)
        # By whether the backbone's activations are computed anew.
        self._training = {bool(blocks): FakeTraining(model, config)}
        self.parameters = parts(model, blocks)
        sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
        self.block_parameters = max(sizes, default=0)
        self.has_backbone = bool(blocks)
        self._known: dict[bool, Costs] = {}

    @property
    def num_parameters(self) -> int:
        """In all."""
        return sum(self.parameters.values())

    @property
    def optimizer_bytes(self) -> int:
        """The optimiser's state."""
        return self._own.optimizer_bytes

    @property
    def update_bytes(self) -> int:
        """What clipping and the optimiser need in an update, besides that state."""
        return self._own.update_bytes

    @property
    def weight_bytes(self) -> int:
        """Weights, gradients, optimiser and average."""
        return 3 * FLOAT32 * self.num_parameters + self.optimizer_bytes

    @property
    def slot_bytes(self) -> int:
        """What the loop holds of a sample, whether or not it is in work."""
        # Symbols and classes are integers of eight bytes.
        own = self.costs(self.config.train.checkpoint_activations)
        return 2 * 8 * self.config.length + own.state.each

    def costs(self, checkpoint: bool = False) -> Costs:
        """What the passes cost, if the backbone's activations are kept or computed anew."""
        if checkpoint not in self._known:
            self._known[checkpoint] = self._measured(checkpoint)
        return self._known[checkpoint]

    def flops(self, steps: int | None = None, checkpoint: bool = False) -> int:
        """Operations of training on one sample, in one optimiser step.

        Args:
            steps: Updates that the solver makes, at least 1; by default its whole budget.
            checkpoint: The backbone's activations are computed once more in the backward pass,
                up to the last one that it needs.
        """
        flops, budget = self.costs(checkpoint).flops, self.config.train_steps
        if steps is None or steps == budget:
            return flops
        return flops + (steps - budget) * self.flops_of_update

    @property
    def flops_of_update(self) -> int:
        """What one update more of the solver, or one loop more, costs a sample."""
        return self._longer.flops // FEW_SAMPLES

    def describe(self) -> str:
        """One line."""
        train, costs = self.config.train, self.costs(self.config.train.checkpoint_activations)
        kept = costs.kept.of(train.batch_size // train.accumulate)
        return (
            f"Plan: {self.num_parameters:,} parameters, {show_bytes(self.weight_bytes)} for "
            f"weights, gradients, optimiser and average, about {show_bytes(kept)} for "
            f"activations, {train.batch_size * costs.flops / 1e9:,.1f} GFLOP per optimiser step"
        )

    def _measured(self, checkpoint: bool) -> Costs:
        """Costs for a sample, from what they grow by with one sample more."""
        training = self._of(checkpoint)
        base = training.passes(FEW_SAMPLES, self._few_steps)
        sample = _difference(training.passes(FEW_SAMPLES + 1, self._few_steps), base)
        left_out = self.config.train_steps - self._few_steps

        def total(name: str) -> Bytes:
            each = getattr(sample, name)
            shared = getattr(base, name) - FEW_SAMPLES * each
            if left_out:
                each += left_out * getattr(self._longer, name) // FEW_SAMPLES
            return Bytes(shared, each)

        names = ("kept", "peak", "networks", "solver", "state")
        return Costs(flops=total("flops").each, **{name: total(name) for name in names})

    def _of(self, checkpoint: bool) -> FakeTraining:
        if checkpoint not in self._training and not checkpoint:
            self._training[False] = FakeTraining(_meta(self.config), self.config)
        return self._training[checkpoint]

    @property
    def _own(self) -> FakeTraining:
        return self._of(self.config.train.checkpoint_activations)

    @property
    def _few_steps(self) -> int:
        # Of a loop, only the last ones are recorded, so that not all of them cost the same.
        budget = self.config.train_steps
        return min(budget, FEW_STEPS) if self.solves else budget

    @functools.cached_property
    def _longer(self) -> StepCost:
        """What one update more costs the few samples; the backbone has no part in it."""
        few = self._few_steps
        base = self._own.passes(FEW_SAMPLES, few)
        return _difference(self._own.passes(FEW_SAMPLES, few + 1), base)


def _meta(config: Config) -> nn.Module:
    with torch.device("meta"):
        return config.build()


def _difference(more: StepCost, less: StepCost) -> StepCost:
    names = [field.name for field in dataclasses.fields(StepCost)]
    return StepCost(**{name: getattr(more, name) - getattr(less, name) for name in names})


def backbone(model: nn.Module, required: bool) -> list[nn.Module]:
    """The blocks whose activations can be computed anew; from now on, they are.

    Raises:
        ValueError: There is none, and one is required.
    """
    try:
        recompute_activations(model)
    except ValueError:
        if required:
            raise
        return []
    return [module for module in modules_used_once(model) if recomputes(module)]


def parts(model: nn.Module, blocks: list[nn.Module]) -> dict[str, int]:
    """Parameters by part of a model.

    Those of the blocks are "backbone", those of what is solved or looped over "refiner", tables
    of tokens and places "embedding", what a model holds itself, such as a learned start, "other",
    and the rest is "head".
    """
    once, inner = set(modules_used_once(model)), {m for block in blocks for m in block.modules()}

    def part(module: nn.Module) -> str:
        if module not in once:
            return "refiner"
        if module in inner:
            return "backbone"
        if isinstance(module, nn.Embedding):
            return "embedding"
        return "other" if module is model else "head"

    counts: dict[str, int] = dict.fromkeys(["embedding", "backbone", "refiner", "head", "other"], 0)
    counted: set[nn.Parameter] = set()
    for module in model.modules():
        own = set(module.parameters(recurse=False)) - counted
        counts[part(module)] += sum(parameter.numel() for parameter in own)
        counted |= own
    return {name: count for name, count in counts.items() if count}


def show_bytes(count: float) -> str:
    """In a unit that suits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
