"""Other libraries' solvers as black boxes, judged by our rule.

A peer is called whole, and calls the map back as often as it likes. Each point that it evaluates
is judged by the verdicts of this library, which end it by an exception of ours; what it returns or
claims is never read. So its answer is the best point that it has evaluated.
"""

import dataclasses
import math
import warnings
from abc import abstractmethod
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from solvers.base import WholeSolver
from solvers.checks import check_counts
from solvers.counted_map import CountedMap
from solvers.packing import StatePacking
from solvers.promises import Promises
from solvers.solution import Result, Solution
from solvers.status import RUNNING, SampleStatus
from solvers.torch_internals import pytree
from solvers.trees import take_rows
from solvers.types import Flat, Map, Mask, State, Watch

# What most peers promise: see `Promises`.
ANYWHERE = Promises(radius=math.inf, one_call=False, tokens=False, compacts=False)


class PeerMap(Protocol):
    """The map as a peer calls it; a probe of the derivative is not judged, and is no step."""

    def __call__(self, z: Tensor, *, probe: bool = False) -> Tensor:
        """The value at `z`."""
        ...


class Enough(Exception):
    """Every sample has a verdict, or the budget is used up: the peer is left."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerSolver(WholeSolver):
    """Base of all adapters: `call` runs the peer, and everything else is common.

    A point that the peer tries is one step, in a line search too. A peer that ends on its own
    account, or by an exception of `failures`, leaves its samples `stalled`; one that asks for a
    point that is not finite leaves them `nonfinite`. It works on z = y / scale, with a power of
    two near each first residual, so that its absolute constants suit any units of `y`. Stopped
    samples report f(z) = z, so that they do not affect the rest.

    Without `args`, or where `f` may couple the samples, one run covers all of them as one vector.
    Tokens are refused. No sample leaves the batch before its run has ended.

    Attributes:
        batched: The peer solves the rows of a matrix apart from each other. If not, every sample
            has a run of its own.
        package: Whose warnings are dropped: what they are about, the verdicts say.
        failures: What the peer raises when it cannot go on.
    """

    promises: ClassVar[Promises] = dataclasses.replace(ANYWHERE, radius=1.0)
    batched: ClassVar[bool] = False
    package: ClassVar[str] = ""
    failures: ClassVar[tuple[type[Exception], ...]] = (ValueError, ArithmeticError)

    @abstractmethod
    def call(self, f: PeerMap, z: Tensor, eps: float) -> object:
        """Run the peer from `z`, of shape (rows, entries), without end.

        Args:
            f: The map. It raises `Enough` to end the peer.
            z: Where to start, and the first point to evaluate; one row, unless `batched`.
            eps: Relative precision of what `f` returns.
        """

    def iterate(
        self,
        f: Map,
        y0: State,
        args: tuple[Any, ...] = (),
        *,
        max_steps: int,
        batch_dims: int = 1,
        independent: bool | None = None,
        scale: Any = None,
        rhs: State | None = None,
        watch: Watch | None = None,
        **_: Any,
    ) -> Solution:
        """Run the peer; arguments as of `Run`, but `compact` and `memory` have no effect."""
        check_counts(max_steps, batch_dims)
        packing = StatePacking(y0, batch_dims, scale)
        self.check_tokens(packing)
        constant = None if rhs is None else packing.pack(rhs)
        evaluate = CountedMap(f, args, packing, constant)
        independent = bool(args) if independent is None else independent
        options: dict[str, Any] = {"solver": self, "independent": independent}
        if not packing.num_samples:
            return SampleStatus(packing.pack(y0), packing, rhs=constant, **options).finish(0, 0)
        y = packing.pack(y0)
        fy = evaluate(y)
        if torch.is_grad_enabled() and fy.requires_grad:
            raise NotImplementedError(
                f"The steps of {type(self).__name__} cannot be recorded by autograd. Use "
                "`backward='exact'` or another implicit mode, or a solver of this library."
            )
        all_rows = torch.arange(packing.num_rows, device=packing.device)
        separate = bool(args) and independent and batch_dims > 0 and not self.batched
        parts = []
        for rows in all_rows.split(1 if separate else packing.num_rows):
            part = evaluate.of_rows(rows) if separate else evaluate
            own = StatePacking(take_rows(y0, rows), batch_dims, scale) if separate else packing
            status = SampleStatus(y[rows] if separate else y, own, rhs=part.rhs, **options)
            judge = _Judge(part, status, max_steps, watch)
            self._solve(judge, *((y[rows], fy[rows]) if separate else (y, fy)))
            parts.append(status.finish(part.num_evals, part.rows_evaluated))
        return _joined(parts, evaluate) if separate else parts[0]

    def _solve(self, judge: "_Judge", y: Flat, fy: Flat) -> None:
        """One run of the peer, from a start with a known value."""
        status, evaluate = judge.status, judge.map
        try:
            judge.judge(y, fy)
            shape = (len(y) if self.batched and status.independent else 1, -1)
            z = judge.begin(y, fy).view(shape)
            eps = max(torch.finfo(dtype).eps for dtype in evaluate.packing.dtypes)
            with torch.no_grad(), warnings.catch_warnings(), evaluate.checked.full_precision():
                warnings.filterwarnings("ignore", module=self.package)
                self.call(judge, z, eps)
        except (Enough, *self.failures):
            if judge.calling:
                raise
        if judge.step <= judge.max_steps:  # the peer has ended before its budget
            status.stop(status.result == RUNNING, Result.stalled)
        if status.mixes_steps:
            status.measure(evaluate(status.value))


class _Judge:
    """The map of one run: judges each point, and tells the peer only what its samples may hear."""

    def __init__(
        self, evaluate: CountedMap, status: SampleStatus, max_steps: int, watch: Watch | None
    ):
        self.map, self.status, self.max_steps, self.watch = evaluate, status, max_steps, watch
        self.step, self.first, self.calling = 0, True, False

    def judge(self, y: Flat, fy: Flat) -> None:
        """Update the verdicts, and end the peer when that is due."""
        running = self.status.update(y, fy, self.step)
        if self.watch is not None:
            self.watch(self.map, self.status, y, fy)
            running = self.status.num_running
        self.step += 1
        if running == 0 or self.step > self.max_steps:
            raise Enough

    def begin(self, y: Flat, fy: Flat) -> Tensor:
        """Fix the scale, and return the start in units of it."""
        size = (fy - y).abs().amax(1).maximum(fy.abs().amax(1) * torch.finfo(y.dtype).eps)
        size = torch.where((size > 0) & size.isfinite(), size, 1.0)
        scale = torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent)[:, None]
        self.scale = scale if self.status.independent else scale.amax().expand_as(scale)
        self.known = y, fy
        return (y / self.scale).nan_to_num(0.0, 0.0, 0.0)

    def __call__(self, z: Tensor, *, probe: bool = False) -> Tensor:
        """The value at `z`, in its shape; the first one is known."""
        status, packing = self.status, self.map.packing
        if self.first:
            self.first = False
            return self._told(*self.known, z)
        y = (z.to(packing.device).view_as(self.scale * status.value) * self.scale).to(packing.dtype)
        y = packing.round(y)
        self._give_up(self._moving() & ~y.isfinite().all(1))
        y = torch.where(self._moving()[:, None], y, status.value)
        if not probe:  # those who have converged and are moved by others make a step as well
            status.num_steps += self._moving() & (status.result != RUNNING)
            status.pending_steps += 1
        self.calling = True  # so that an error of `f` is told from one of the peer
        fy = self.map(y)
        self.calling = False
        if probe:
            self._give_up(self._moving() & ~fy.isfinite().all(1))
        else:
            self.judge(y, fy)
        return self._told(y, fy, z)

    def _moving(self) -> Mask:
        """Who goes where the peer goes: where samples may be coupled, the converged ones too."""
        result = self.status.result
        together = (result == Result.converged) & self.status.coupled
        return (result == RUNNING) | together

    def _give_up(self, samples: Mask) -> None:
        self.status.stop(samples, Result.nonfinite)
        if self.status.num_running == 0:
            raise Enough

    def _told(self, y: Flat, fy: Flat, z: Tensor) -> Tensor:
        told = torch.where(self._moving()[:, None], fy, y) / self.scale
        return told.nan_to_num(0.0, 0.0, 0.0).to(z).view_as(z)


def _joined(parts: list[Solution], evaluate: CountedMap) -> Solution:
    """Solutions of one row each as one of the batch, whose first call served all."""
    value = pytree.tree_map(lambda *leaves: torch.cat(leaves), *(s.value for s in parts))
    residual, result, num_steps = (
        torch.cat([getattr(s, name) for s in parts]) for name in ("residual", "result", "num_steps")
    )
    return Solution(
        value=value, residual=residual, result=result, num_steps=num_steps,
        num_evals=evaluate.num_evals + sum(s.num_evals for s in parts),
        rows_evaluated=evaluate.rows_evaluated + sum(s.rows_evaluated for s in parts),
    )  # fmt: skip
