"""The conversations of one solve: who is asked next, and where each sample is evaluated."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from solvers.base import CountedMap
from solvers.contrib.conversation import Conversation, PeerMap
from solvers.solution import Result
from solvers.status import RUNNING, SampleStatus
from solvers.types import Flat, Index, Mask, PerSample

if TYPE_CHECKING:
    from solvers.contrib.base import PeerSolver


class Panel:
    """Runs of one peer, each on its share of the samples, kept in step with each other.

    Every call of `f` serves all runs at once. They begin at the first step, with the samples
    that are then left, and work on z = y / scale.
    """

    def __init__(self, solver: "PeerSolver", evaluate: CountedMap, status: SampleStatus):
        self.solver, self.evaluate, self.status = solver, evaluate, status
        self.packing = evaluate.packing
        # Whether a run covers all that `f` may couple, as one vector.
        self.joint = solver.grain == "joint" or not status.independent
        self.runs: list[tuple[slice, Conversation]] = []
        self.begun = False

    def next_points(self, y: Flat, fy: Flat) -> Flat:
        """Pass the values of f on to the peers; return the points that they try next."""
        if not self.begun:
            self._begin(y, fy)
        waiting = self._running()
        while True:
            points = self._ask(fy, waiting)
            probing = self._probing()
            waiting = probing & self._running()
            if not bool(waiting.any()):
                break
            # The others are evaluated in vain, at points whose values are known.
            fy = self.evaluate(torch.where((probing & self._moving())[:, None], points, y))
            self._give_up(waiting & ~fy.isfinite().all(1), Result.nonfinite)
        self._give_up(~points.isfinite().all(1), Result.nonfinite)
        return points

    def advance(self, y: Flat, points: Flat) -> Flat:
        """Count the update; samples that rest within a run move on with it."""
        carried = self._moving() & ~self._running()
        self.status.num_steps += carried
        return torch.where(carried[:, None], points, self.status.advance(y, points))

    def keep(self, samples: Index) -> None:
        """Drop all but these samples; those that share a run with others stay idle in it."""
        if not self.begun:
            return
        self.index = self.index.index_select(0, samples)
        self.scale = self.scale.index_select(0, samples)
        left = self._spread(torch.ones_like(self.index, dtype=torch.bool))
        for rows, run in self.runs:
            if not any(left[rows]):
                run.close()
        self.runs = [(rows, run) for rows, run in self.runs if any(left[rows])]

    def close(self) -> None:
        """End all runs."""
        for _, run in self.runs:
            run.close()

    def _begin(self, y: Flat, fy: Flat) -> None:
        self.begun = True
        # Where the samples that are left stand among those that the runs began with.
        self.index = torch.arange(len(y), device=y.device)
        self.scale = _scale(y, fy)
        size = self._size(len(y))
        if self.joint:
            largest = self.scale.view(-1, size).amax(1)
            self.scale = largest.repeat_interleave(size)[:, None]
        self.z = self._to_peer((y / self.scale).nan_to_num(0.0, 0.0, 0.0))
        eps = max(torch.finfo(dtype).eps for dtype in self.packing.dtypes)
        for start in range(0, len(y), size):
            rows = slice(start, start + size)
            z = self.z[rows].clone()
            self.runs.append((rows, self._run(z.view(1, -1) if self.joint else z, eps)))

    def _run(self, z: Tensor, eps: float) -> Conversation:
        def drive(f: PeerMap) -> object:
            return self.solver.drive(f, z, eps)

        with _quiet():
            return Conversation(drive, self.solver.failures)

    def _size(self, count: int) -> int:
        """How many of `count` samples one run covers."""
        if not self.status.independent:
            return count
        if self.joint:
            return self.packing.samples_per_row
        return count if self.solver.grain == "batch" and not self.status.joint else 1

    def _ask(self, fy: Flat, waiting: Mask) -> Flat:
        """Answer the runs of those who wait; return the points that all ask for now."""
        # Of who has failed or left, the peer hears that all is well, which suits the others.
        told, moving = self.z.clone(), self._moving()
        told[self._here(self.index[moving])] = self._to_peer((fy / self.scale)[moving])
        asked = self._spread(waiting)
        ended = torch.zeros(len(self.z), dtype=torch.bool, device=self.packing.device)
        with _quiet():
            for rows, run in self.runs:
                if not any(asked[rows]):
                    continue
                if run.question is not None:
                    run.reply(told[rows].view_as(run.question))
                if run.question is None:
                    ended[rows] = True
                else:
                    self.z[rows] = run.question.view_as(self.z[rows])
        self._give_up(ended[self.index], Result.stalled)
        z = self.z[self._here(self.index)].to(self.packing.device)
        return self.packing.round((z * self.scale).to(self.packing.dtype))

    def _running(self) -> Mask:
        return self.status.result == RUNNING

    def _moving(self) -> Mask:
        """A joint run goes on for all that it covers; other samples rest once converged."""
        running = self._running()
        if not self.joint:
            return running
        size = self._size(len(running))
        busy = running.view(-1, size).any(1).repeat_interleave(size)
        return running | (busy & (self.status.result == Result.converged))

    def _probing(self) -> Mask:
        """Whose run asks for a finite difference."""
        probing = torch.zeros(len(self.z), dtype=torch.bool)
        for rows, run in self.runs:
            if run.probing:
                probing[rows] = True
        return probing.to(self.packing.device)[self.index]

    def _give_up(self, samples: Mask, result: Result) -> None:
        self.status.stop(samples, result)

    def _spread(self, samples: Mask) -> list[bool]:
        """A mask over those who are left -> one over those who began."""
        spread = samples.new_zeros(len(self.z))
        spread[self.index] = samples
        return spread.tolist()

    def _to_peer(self, value: Tensor) -> Tensor:
        return value.to("cpu", torch.float64) if self.solver.on_cpu else value

    def _here(self, index: Index) -> Index:
        return index.to("cpu") if self.solver.on_cpu else index


def _scale(y: Flat, fy: Flat) -> PerSample:
    """A power of two near the first residual of each sample, as a column; 1 if there is none."""
    size = fy.abs().amax(1) * torch.finfo(y.dtype).eps
    size = torch.maximum((fy - y).abs().amax(1), size)
    size = torch.where((size > 0) & size.isfinite(), size, 1.0)
    return torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent)[:, None]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop a peer's warnings: what they are about, the verdicts say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
