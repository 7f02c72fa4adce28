"""Other libraries' solvers under this library's contract.

A peer only chooses points. Evaluating `f`, counting, judging each sample and stopping happen
here, by the same status as for our own solvers, so that no peer's claim is ever repeated.
"""

import contextlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor

from solvers.base import CountedMap, FixedPointSolver
from solvers.contrib.conversation import PeerMap
from solvers.contrib.panel import Panel
from solvers.status import SampleStatus
from solvers.types import Flat, Index


@dataclass(frozen=True, kw_only=True)
class PeerSolver(FixedPointSolver):
    """Base of all adapters: `drive` runs the peer, and everything else is common.

    One step is one more point that the peer tries, in a line search too: with the start, as
    many as there are calls of `f`, unless the peer takes finite differences. A peer that ends
    on its own account, or by an exception, leaves its samples `stalled`; one that asks for a
    point that is not finite leaves them `nonfinite`.

    A peer works on z = y / scale, with a power of two near each first residual, so that its
    absolute constants mean the same whatever the units of `y`.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.

    Attributes:
        grain: What one run of the peer covers, given `args`: one "sample"; a "batch" of samples
            that neither the peer nor `f` mixes (tokens may be: then one sample); or, "joint",
            one row of the batch with all of its tokens. Without `args`, `f` may couple all
            samples, and one run covers them as one vector.
        on_cpu: The peer gets float64 on the CPU, whatever the state's dtype and device.
        failures: What the peer raises when it cannot go on.
        recordable: Whether autograd can record the steps.
    """

    grain: ClassVar[Literal["sample", "batch", "joint"]] = "sample"
    on_cpu: ClassVar[bool] = False
    failures: ClassVar[tuple[type[Exception], ...]] = (ValueError, ArithmeticError)
    recordable: ClassVar[bool] = False

    @abstractmethod
    def drive(self, f: PeerMap, z: Tensor, eps: float) -> object:
        """Run the peer on the map `f` from `z`, of shape (rows, entries), without end.

        Args:
            f: The map. It stops the peer, by an exception, when enough is known. With
                `probe=True` the point is not judged, and no step: a finite difference.
            z: Where to start; the first point that the peer evaluates. Several rows only
                if `grain` is "batch".
            eps: Relative precision of what `f` returns.
        """

    def init(self, y: Flat) -> NoReturn:
        """Refused: a peer keeps its own memory."""
        raise NotImplementedError(f"{type(self).__name__} runs as a whole: call `iterate`.")

    def step(self, y: Flat, fy: Flat, carry: Any) -> NoReturn:
        """Refused: a peer takes its own steps."""
        raise NotImplementedError(f"{type(self).__name__} runs as a whole: call `iterate`.")

    def begin(self, y: Flat, f: CountedMap, status: SampleStatus) -> contextlib.closing[Panel]:
        """The runs of the peer, which are its memory.

        Raises:
            ValueError: One run would cover several tokens, whose verdicts are to be causal.
        """
        if status.packing.samples_per_row > 1 and not status.independent:
            raise ValueError(
                f"{type(self).__name__} solves all samples as one vector where they may be "
                "coupled, so that a token would see those behind it. With `batch_dims=2` give it "
                "the map's input in `args`, or use a solver of this library."
            )
        return contextlib.closing(Panel(self, f, status))

    def move(self, y: Flat, fy: Flat, carry: Panel, f: CountedMap) -> tuple[Flat, Panel]:
        """The points that the peer tries next.

        Raises:
            NotImplementedError: Autograd would have to record the steps.
        """
        if torch.is_grad_enabled() and fy.requires_grad:
            raise NotImplementedError(
                f"The steps of {type(self).__name__} cannot be recorded by autograd. Use "
                "`backward='exact'` or another implicit mode, or a solver of this library."
            )
        return carry.next_points(y, fy), carry

    def advance(self, y: Flat, y_next: Flat, carry: Panel, status: SampleStatus) -> Flat:
        """Samples that have converged go on if their run does."""
        return carry.advance(y, y_next)

    def keep(self, carry: Panel, samples: Index) -> Panel:
        """Drop all but these samples."""
        carry.keep(samples)
        return carry
