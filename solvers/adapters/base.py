"""Other libraries' solvers under this library's contract.

A peer only chooses points. Evaluating `f`, counting, judging each sample and stopping happen
here, by the same ledger as for our own solvers, so that no peer's claim is ever repeated.
"""

import contextlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor

from solvers.adapters.conversation import PeerMap
from solvers.adapters.panel import Panel
from solvers.base import COMPACT_SHARE, Evaluation, FixedPointSolver, check_counts
from solvers.layout import Layout
from solvers.ledger import Ledger
from solvers.solution import Solution
from solvers.types import Flat, Index, Map, State


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

    def iterate(
        self,
        f: Map,
        y0: State,
        args: tuple[Any, ...] = (),
        *,
        max_steps: int,
        batch_dims: int = 1,
        compact: bool = True,
        independent: bool | None = None,
        memory: list[tuple[Index, Any]] | None = None,
    ) -> Solution:
        """Run the peer, without recording it; `solvers.solve` is the public entry.

        `memory` stays empty, as a peer keeps its own: `estimates_inverse` is False.

        Raises:
            NotImplementedError: Autograd would have to record the steps.
        """
        check_counts(max_steps, batch_dims)
        layout = Layout(y0, batch_dims)
        evaluate = Evaluation(f, args, layout)
        y = layout.pack(y0)
        independent = bool(args) if independent is None else independent
        ledger = Ledger(y, layout, rtol=self.rtol, atol=self.atol, independent=independent)
        with contextlib.closing(Panel(self, evaluate, ledger)) as panel:
            for step in range(max_steps + 1 if layout.num_samples else 0):
                fy = evaluate(y)
                if ledger.observe(y, fy, step) == 0 or step == max_steps:
                    break
                self._refuse_recording(fy)
                if compact and args:
                    kept = ledger.compact(COMPACT_SHARE, evaluate)
                    if kept is not None:
                        rows, samples = kept
                        fy = fy.index_select(0, samples)
                        y = y.index_select(0, samples)
                        panel.keep(samples)
                        evaluate.keep(rows)
                y = panel.advance(y, fy)
                if ledger.num_running == 0:
                    break
        if ledger.mixes_steps:
            ledger.measure(evaluate(ledger.value))
        return ledger.solution(evaluate.num_evals, evaluate.rows_evaluated)

    def _refuse_recording(self, fy: Flat) -> None:
        if torch.is_grad_enabled() and fy.requires_grad:
            raise NotImplementedError(
                f"The steps of {type(self).__name__} cannot be recorded by autograd. Use "
                "`backward='exact'` or another implicit mode, or a solver of this library."
            )
