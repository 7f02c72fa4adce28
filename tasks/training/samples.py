"""The samples that are in training at the moment."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solvers.torch_internals import pytree
from tasks.distributed import Group
from tasks.training.options import Config

EXPLORED = 0.1


@dataclasses.dataclass
class ActiveSamples:
    """The samples in training, one in each row of the batch, with the state of their solves.

    Attributes:
        x: Inputs, shape (batch, ...).
        target: Target classes, shape (batch, ...).
        age: Number of segments that each sample has had, shape (batch,).
        state: State in which the last segment of each sample ended; None before the first segment.
    """

    x: Tensor
    target: Tensor
    age: Tensor
    state: Any = None

    def start(self, rows: slice) -> Any:
        """The state in which the next segment of these rows starts; None if all rows are new."""
        if self.state is None:
            return None
        return pytree.tree_map(lambda leaf: leaf[rows], self.state)

    def store(self, rows: slice, state: Any) -> None:
        """Store the state in which the last segment of these rows ended."""
        if self.state is None:
            count = len(self.age)
            self.state = pytree.tree_map(lambda leaf: leaf.new_zeros(count, *leaf.shape[1:]), state)
        pytree.tree_map(lambda all_, some: all_[rows].copy_(some), self.state, state)

    def tensors(self) -> dict[str, Tensor]:
        """All of this as named tensors, for a checkpoint."""
        named = {"x": self.x, "target": self.target, "age": self.age}
        if isinstance(self.state, Tensor):
            return {**named, "state": self.state}
        return {**named, **{f"state.{i}": leaf for i, leaf in enumerate(self.state or ())}}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device) -> "ActiveSamples":
        """Undo `tensors`."""
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        parts = [moved[name] for name in sorted(moved) if name.startswith("state.")]
        state = moved.get("state", tuple(parts) or None)
        return cls(moved["x"], moved["target"], moved["age"], state)


def refilled(
    samples: ActiveSamples | None,
    batch_size: int,
    segments: int,
    draw: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    group: Group,
    device: torch.device,
) -> ActiveSamples:
    """The samples in training, after new ones have replaced those that are done, of age 0.

    The first ones count as older, each row by one segment more than the row before: so every later
    step sees samples of all ages, and a few new ones, instead of all at the same age.

    Args:
        samples: This process's share; None before the first step.
        batch_size: Rows of all processes.
        segments: Segments of a sample.
        draw: Called as draw(rows, count): draws so many samples, the same in all processes, and
            returns the rows that this one keeps.
        group: The processes.
        device: Where the samples belong.
    """
    rows = group.rows(batch_size)
    if samples is None:
        ours = torch.arange(rows.start, rows.stop)
        x, target = (drawn.to(device) for drawn in draw(ours, batch_size))
        return ActiveSamples(
            x, target, torch.arange(rows.start, rows.stop, device=device) % segments
        )
    done = (group.all_gather(samples.age) == 0).nonzero()[:, 0]
    if len(done):
        ours = (done >= rows.start) & (done < rows.stop)
        places = done[ours] - rows.start
        kept = ours.cpu().nonzero()[:, 0]
        x, target = (drawn.to(device) for drawn in draw(kept, len(done)))
        samples.x[places], samples.target[places] = x, target
    return samples


def least_segments(batch_size: int, segments: int, generator: torch.Generator) -> Tensor:
    """Segments that each sample must have had before its halting head may end it.

    None for most, and for a share EXPLORED of them a random number from two on, so that the head
    also sees samples that go on after it would have stopped them.

    References:
        G. Wang et al., Hierarchical Reasoning Model, arXiv:2506.21734, sec. 2 (the probability).
    """
    explored = torch.rand(batch_size, generator=generator) < EXPLORED
    least = torch.randint(2, max(segments, 2) + 1, (batch_size,), generator=generator)
    return torch.where(explored, least, 0)


def check_samples(tensors: dict[str, Tensor], config: Config, dtype: torch.dtype) -> None:
    """Check that tensors from a file can be the samples of a run.

    Args:
        tensors: By name; see `ActiveSamples.tensors`.
        config: Of the run.
        dtype: Of the model's weights.

    Raises:
        ValueError: One has another shape or type, or holds numbers that no sample has.
    """
    rows, length, width = config.train.batch_size, config.length, config.model.width
    shapes = {"x": (rows, length), "target": (rows, length), "age": (rows,)}
    limits = {"x": config.num_inputs, "target": config.num_classes, "age": 2**31}
    for name, shape in shapes.items():
        values = tensors[name]
        if values.shape != shape or values.dtype != torch.int64:
            raise ValueError(
                f"`{name}` is {tuple(values.shape)} of {values.dtype}, expected {shape} of "
                "torch.int64"
            )
        if not bool(((values >= 0) & (values < limits[name])).all()):
            raise ValueError(f"`{name}` has a number outside [0, {limits[name]})")
    places = config.state_length
    kinds = (dtype, torch.bfloat16) if config.train.autocast else (dtype,)
    for name in set(tensors) - set(shapes):
        shape, kind = tuple(tensors[name].shape), tensors[name].dtype
        fits = shape[:2] == (rows, places) and shape[-1] == width and kind in kinds
        if not fits or not name.startswith("state"):
            raise ValueError(
                f"`{name[:100]}` is {shape} of {kind}, expected ({rows}, {places}, ..., {width}) "
                f"of {' or '.join(map(str, kinds))}"
            )
