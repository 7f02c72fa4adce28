"""A plan on devices: memory on each, what fits, time, cost, and what they tell each other.

    DDP    every device holds the whole state, and gradients are summed around a ring
    FSDP   every device holds its share of it, and gathers the weights that it needs

References:
    S. Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models,
    SC 2020, arXiv:1910.02054, sec. 5 (shares) and 7 (volumes). P. Patarasuk, X. Yuan, Bandwidth
    optimal all-reduce algorithms for clusters of workstations, JPDC 2009 (the ring).
"""

import bisect
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from tasks.planning.plan import Plan, show_bytes
from tasks.planning.stand_ins import FLOAT32
from tasks.training.micro_batches import micro_batch as rows_at_once
from tasks.training.reading import Reading

# NVIDIA H100 SXM data sheet: dense bfloat16 (half of the 1,979 with sparsity), TFLOP/s.
H100_TFLOPS = 989.4
# What a ring carries, bytes per second: NVLink within a node of 8 (H100 data sheet: 900 GB/s, both
# ways together); between nodes it leaves each once, spread over its 8 adapters of 400 Gb/s (DGX
# H100 data sheet).
NODE, NVLINK, NETWORK = 8, 450e9, 8 * 50e9
# Of a device's memory: the driver, the communication library, and the allocator's losses.
RESERVED = 0.1

Parallel = Literal["one device", "DDP", "FSDP"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """One device of a run.

    Attributes:
        gpu_memory: Memory of each GPU, in GB of 10^9 bytes.
        utilisation: Share of the peak that training reaches, in (0, 1].
        peak_tflops: Peak of each in TFLOP/s; by default that of an H100 SXM in bfloat16, dense.
        price: Of a GPU for an hour, in any currency.
    """

    gpu_memory: float = 80.0
    utilisation: float = 0.4
    peak_tflops: float = H100_TFLOPS
    price: float | None = None

    def __post_init__(self) -> None:
        for name in ("gpu_memory", "peak_tflops"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"`--{name.replace('_', '-')}` must be above 0, got {value!r}.")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"`--utilisation` must lie in (0, 1], got {self.utilisation!r}.")
        if self.price is not None and not self.price >= 0:
            raise ValueError(f"`--price` must be 0 or more, got {self.price!r}.")

    @property
    def usable_bytes(self) -> float:
        """Bytes that a run can use."""
        return (1 - RESERVED) * 1e9 * self.gpu_memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster(Device):
    """The devices of a run, all alike.

    Attributes:
        gpus: How many.
    """

    gpus: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gpus(self.gpus)

    @property
    def flops_per_second(self) -> float:
        """Speed of all devices together, at the assumed utilisation."""
        return self.gpus * 1e12 * self.peak_tflops * self.utilisation


def check_gpus(count: int) -> None:
    """Check a number of GPUs.

    Raises:
        ValueError: There is none.
    """
    if count < 1:
        raise ValueError(f"`--gpus` must be at least 1, got {count}.")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a device holds, by purpose.

    Attributes:
        parallel: How the devices share the work.
        checkpoint: Whether the backbone's blocks are computed anew in the backward pass.
        micro_batch: Samples at a time.
        weights: The part of the weights that is stored on the device.
        gradients: The part of the gradients, which exist from the end of a backward pass on.
        optimizer: The part of the optimiser's state.
        average: The averaged weights.
        exchange: Buffers of gradients under DDP; gathered weights, and gradients before they are
            scattered, under FSDP: of micro-batches, all gradients.
        slots: The device's share of the batch, and the states that its samples go on from.
        activations: What the networks need at their worst moment, the loss included.
        solver: What the solver holds; freed before the loss.
        total: At the worst moment of the passes or of the update.
    """

    parallel: Parallel
    checkpoint: bool
    micro_batch: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    exchange: int
    slots: int
    activations: int
    solver: int
    total: int


def memory(
    plan: Plan, cluster: Cluster, parallel: Parallel, checkpoint: bool, micro_batch: int
) -> Memory:
    """What a device holds with this many samples at a time: its share of the batch, or a part.

    Under FSDP the blocks of the backbone are gathered one by one, the next one early; all else
    stays gathered, since no device may wait for others within a solve.
    """
    size = FLOAT32 * plan.num_parameters
    share = cluster.gpus if parallel == "FSDP" else 1
    stored = [math.ceil(part / share) for part in (size, size, plan.optimizer_bytes, size)]
    in_parts, exchange = micro_batch < share_of_batch(plan, cluster), 0
    if parallel == "DDP":
        exchange = size
    elif parallel == "FSDP":
        rest = size - FLOAT32 * plan.parameters.get("backbone", 0)
        block = FLOAT32 * plan.block_parameters
        exchange = rest + 2 * block + max(rest, block)
        if in_parts:
            exchange += size
    slots = max(micro_batch, share_of_batch(plan, cluster)) * plan.slot_bytes
    costs, gradients = plan.costs(checkpoint), stored[1]
    # Gradients of one micro-batch alone come as its activations go.
    passes = costs.peak.of(micro_batch) + (gradients if in_parts else 0)
    worst = max(passes, gradients + plan.update_bytes)
    return Memory(
        parallel,
        checkpoint,
        micro_batch,
        *stored,
        exchange=exchange,
        slots=slots,
        activations=costs.networks.of(micro_batch),
        solver=costs.solver.of(micro_batch),
        total=sum(stored) - gradients + exchange + slots + worst,
    )


def share_of_batch(plan: Plan, cluster: Cluster) -> int:
    """Samples of a batch on each device, or on most of them."""
    return math.ceil(plan.config.train.batch_size / cluster.gpus)


@dataclasses.dataclass(frozen=True)
class Fit:
    """Whether a run fits the devices, in one way of sharing the work.

    Attributes:
        largest: Most samples at a time that would fit; 0: not even one.
        parts: Micro-batches of a device's share of a batch.
        memory: With that many micro-batches.
    """

    largest: int
    parts: int
    memory: Memory

    @property
    def enough(self) -> bool:
        """Whether these micro-batches fit."""
        return self.memory.micro_batch <= self.largest


def fit(plan: Plan, cluster: Cluster, parallel: Parallel, checkpoint: bool) -> Fit:
    """As few micro-batches as fit, or as many as the run is told to take.

    Raises:
        ValueError: It is told to take a number that does not divide a device's share.
    """

    def at(micro_batch: int) -> Memory:
        return memory(plan, cluster, parallel, checkpoint, micro_batch)

    local = share_of_batch(plan, cluster)
    # The share in one piece, and more; or parts of it, which under FSDP need more besides.
    known = local if at(local).total <= cluster.usable_bytes else 0
    more = range(known + 1, 2**40)
    largest = known + bisect.bisect(more, cluster.usable_bytes, key=lambda rows: at(rows).total)
    if plan.config.train.accumulate > 1:
        micro = rows_at_once(
            plan.config.train.batch_size, cluster.gpus, plan.config.train.accumulate
        )
    else:
        divisors = [d for d in range(1, min(local, largest) + 1) if local % d == 0]
        micro = max(divisors, default=1)
    return Fit(largest, local // micro, at(micro))


def fits(plan: Plan, cluster: Cluster) -> list[Fit]:
    """All ways, the one that costs least time first: sharding costs less than recomputing."""
    ways: Sequence[Parallel] = ("one device",) if cluster.gpus == 1 else ("DDP", "FSDP")
    again = [False] * (not plan.config.train.checkpoint_activations) + [True] * plan.has_backbone
    return [fit(plan, cluster, way, checkpoint) for checkpoint in again for way in ways]


def recommend(plan: Plan, cluster: Cluster, ways: Sequence[Fit]) -> tuple[Fit | None, str]:
    """The first way that fits, and the advice in words."""
    name = sample_name(plan.config.unit)[:-1]

    def counted(samples: int) -> str:
        return f"{samples} {name}{'s' * (samples != 1)}"

    chosen = next((way for way in ways if way.enough), None)
    usable = f"{show_bytes(cluster.usable_bytes)} usable"
    if chosen is None:
        least = min(ways, key=lambda way: way.memory.total).memory
        more = "take more GPUs or larger ones" if cluster.gpus > 1 else "take several, with FSDP"
        if (count := least.micro_batch) > 1:
            more = f"raise `--accumulate`, {more}"
        return None, (
            f"Does not fit: {counted(count)} at a time take{'s' * (count == 1)} "
            f"{show_bytes(least.total)} of {usable}, with {_way(least)}. Go on: {more}, or make "
            f"the model or its {'context' if plan.config.unit == 'token' else 'batch'} smaller."
        )
    at = chosen.memory
    work = f"{counted(at.micro_batch)} per GPU at once (at most {chosen.largest} fit)"
    if chosen.parts > 1:
        rows = counted(at.micro_batch)
        work = f"{chosen.parts} micro-batches of {rows} per GPU (at most {chosen.largest} fit)"
    text = f"Fits: {_way(at)}, {work}, {show_bytes(at.total)} of {usable}."
    flags = ["--parallel fsdp"] * (at.parallel == "FSDP")
    flags += [f"--accumulate {chosen.parts}"] * (chosen.parts > 1)
    flags += ["--checkpoint-activations"] * at.checkpoint
    if flags:
        text += f" `train` does so with `{' '.join(flags)}`."
    if plan.config.train.batch_size % cluster.gpus:
        batch = plan.config.train.batch_size
        text += f" A batch of {batch} does not divide evenly among {cluster.gpus} GPUs."
    return chosen, text


def sample_name(unit: str) -> str:
    """What a batch consists of, in the plural."""
    return "sequences" if unit == "token" else f"{unit}s"


def _way(at: Memory) -> str:
    return f"{at.parallel}, {'with' if at.checkpoint else 'without'} activation checkpointing"


def steps_shown(plan: Plan) -> list[int]:
    """Powers of two below the solver's budget, and the budget; a loop has only its length."""
    budget = plan.config.train_steps
    if not plan.solves:
        return [budget if plan.flops_of_update else 0]
    return [*(2**k for k in range(budget.bit_length()) if 2**k < budget), budget]


def duration(
    plan: Plan,
    cluster: Cluster,
    steps: int,
    units: int | None,
    checkpoint: bool,
    reading: Reading | None = None,
) -> dict[str, Any]:
    """Speed, and what a budget of tokens or puzzles takes, if solves make so many updates.

    Without `reading`, data are taken to be there at once.
    """
    flops = plan.flops(steps, checkpoint) / plan.config.units_per_sample
    seconds = flops / cluster.flops_per_second
    if reading is not None:
        seconds += reading.seconds(1, cluster.gpus)
    speed = 1 / seconds
    days = None if units is None else units / speed / 86_400
    price = cluster.price
    return {
        "solver_steps": steps,
        f"flops_per_{plan.config.unit}": round(flops),
        f"{plan.config.unit}s_per_second": round(speed),
        "days": days,
        "cost": None if days is None or price is None else 24 * days * cluster.gpus * price,
    }


def scaling(
    plan: Plan, cluster: Cluster, steps: int, counts: Sequence[int]
) -> list[dict[str, Any]]:
    """Seconds of computing and of communicating in an optimiser step, on these many GPUs.

    The batch is the plan's, or one sample per GPU where that is more. No collective takes place
    within a solve, so that the volumes do not depend on the solver:

        DDP    2 (n - 1) / n * gradients      (all-reduce around a ring)
        FSDP   (2 N + 1) (n - 1) / n * weights  (gathered twice for each of N micro-batches,
                                                 gradients scattered once)

    Nothing is taken off for communication that runs beside computing.

    Args:
        plan: Of the run.
        cluster: The devices; their number is replaced.
        steps: Updates that a solve makes.
        counts: Numbers of GPUs.
    """
    rows = []
    size, gathered = FLOAT32 * plan.num_parameters, 2 * plan.config.train.accumulate + 1
    for n in counts:
        batch = max(plan.config.train.batch_size, n)
        seconds = batch * plan.flops(steps, plan.config.train.checkpoint_activations)
        seconds /= dataclasses.replace(cluster, gpus=n).flops_per_second
        bandwidth = NVLINK if n <= NODE else NETWORK
        rows.append(
            {
                "gpus": n,
                "batch": batch,
                "compute_seconds": seconds,
                "ddp_bytes": 2 * (n - 1) / n * size,
                "fsdp_bytes": gathered * (n - 1) / n * size,
                "ddp_share": 2 * (n - 1) / n * size / bandwidth / seconds,
                "fsdp_share": gathered * (n - 1) / n * size / bandwidth / seconds,
            }
        )
    return rows
