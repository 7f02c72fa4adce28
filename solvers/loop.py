"""The one loop that every solver runs in.

A solver says how to `init` its memory and how to make one `step`. Asking for values of the map,
judging each sample, holding the stopped ones still and dropping them from the batch happen here.
"""

from collections.abc import Generator
from typing import Any

import torch

from solvers import stopped
from solvers.base import FixedPointSolver
from solvers.checks import check_counts, check_flag, check_unchanged
from solvers.counted_map import CountedMap
from solvers.packing import StatePacking
from solvers.registry import SOLVERS
from solvers.solution import Solution
from solvers.status import SampleStatus
from solvers.torch_internals import version_of
from solvers.transforms import check_readable
from solvers.types import Flat, Map, Memory, State, Watch


class Loop:
    """A solve under way: it asks for the value of the map at `point`, and makes a step by it.

    `Run` is this loop for callers who step it themselves, and documents the parameters. (There are
    more than our limit of eight, since each is a property of this one problem.)

    Attributes:
        point: Where the map is wanted next, in the structure of `y0` and with the rows that are
            left in the batch; None once the solve has ended.
    """

    def __init__(
        self,
        f: Map | None,
        y0: State,
        *args: Any,
        solver: str | FixedPointSolver = "anderson",
        max_steps: int = 50,
        batch_dims: int = 1,
        compact: bool = True,
        independent: bool | None = None,
        scale: Any = None,
        rhs: State | None = None,
        memory: Memory | None = None,
        watch: Watch | None = None,
    ):
        check_counts(max_steps, batch_dims)
        check_flag("compact", compact)
        independent = bool(args) if independent is None else independent
        check_flag("independent", independent)
        solver = SOLVERS.resolve(solver)
        _check_steps(solver, f)
        packing = StatePacking(y0, batch_dims, scale)
        solver.check_tokens(packing)
        constant = None if rhs is None else packing.pack(rhs)
        self.solver, self.map = solver, CountedMap(f, args, packing, constant)
        self.max_steps, self.memory, self.watch = max_steps, memory, watch
        self.compact = compact and bool(args) and independent and memory is None
        y = packing.pack(y0)
        check_readable(y)
        judge = SampleStatus if y.is_cpu else _deferred()
        self.status = judge(y, packing, solver=solver, independent=independent, rhs=constant)
        self.status.rule = self.status.rule.within(max_steps)
        self.carry = solver.init(y)
        self.point: State | None = None
        self._y: Flat | None = None
        self._step = 0
        # Once the last step is made: what is still asked.
        self._closing: Generator[Flat, Flat | None, None] | None = None
        if packing.num_samples:
            self._ask(y)

    def finish(self) -> Solution:
        """Call `f` until the solve has ended, in the caller's grad mode."""
        while self.point is not None:
            self._tell(self.map.evaluate(self.point))
        return self._solution()

    def _ask(self, y: Flat) -> None:
        """Set `point`, and wait for the value there."""
        self._y, self._version = y, version_of(y)
        self.point = self.map.packing.unpack(y)

    def _tell(self, told: State) -> None:
        """Judge all samples by the value of the map at the point, and make one step."""
        y, evaluate, status, solver = self._y, self.map, self.status, self.solver
        assert y is not None
        check_unchanged(y, self._version)
        fy = evaluate.take(told)
        # So that memory does not peak within the step.
        del told
        self.point = self._y = None
        if self._closing is not None:
            self._close(fy)
            return
        status.update(y, fy, self._step, solver.on_trial(self.carry))
        if self.watch is not None:
            self.watch(evaluate, status, y, fy)
        if status.num_running == 0 or self._step == self.max_steps:
            self._close()
            return
        if self.memory is not None:
            stopped.remember(self.memory, self.carry, status.result >= 0)
        elif self.compact and not (status.mixes_steps and evaluate.checked.f is None):
            kept = stopped.remove(status, evaluate)
            if kept is not None:
                # One by one, and the arguments last, so that memory does not peak here.
                rows, samples = kept
                y = y.index_select(0, samples)
                fy = fy.index_select(0, samples)
                self.carry = solver.keep(self.carry, samples)
                evaluate.keep(rows)
        with evaluate.checked.full_precision():
            y_next, self.carry = solver.move(y, fy, self.carry, evaluate)
        status.may_stand = self.carry is None and y_next is not fy
        del fy  # where it is not the next iterate, `f` may need its memory
        stuck = solver.given_up(self.carry)
        if stuck is not None:
            status.give_up(stuck)
        y = status.advance(y, evaluate.packing.round(y_next))
        if status.num_running == 0:
            self._close()
            return
        self._step += 1
        self._ask(y)

    def _close(self, fy: Flat | None = None) -> None:
        """After the last step, ask for what verdicts still hang on, or end the solve."""
        if self._closing is None:
            if self.memory is not None:
                everyone = torch.ones_like(self.status.result, dtype=torch.bool)
                stopped.remember(self.memory, self.carry, everyone)
            self._closing = stopped.last_points(self.status, self.map, self.watch)
        try:
            self._ask(self._closing.send(fy))
        except StopIteration:
            self._closing = None

    def _solution(self) -> Solution:
        """What is known now; samples that still run count as `max_steps`."""
        evaluate, ended = self.map, self.point is None
        return self.status.finish(evaluate.num_evals, evaluate.rows_evaluated, ended=ended)


def _deferred() -> type[SampleStatus]:
    """The status for accelerators, which most solves never need."""
    from solvers.deferred import DeferredStatus

    return DeferredStatus


def _check_steps(solver: FixedPointSolver, f: Map | None) -> None:
    """Raise a ValueError unless the solver can be stepped with this map."""
    if solver.whole:
        raise ValueError(
            f"{type(solver).__name__} makes whole solves, not steps of one: it cannot be stepped. "
            "Call `solve`, or step through another solver, such as 'anderson'."
        )
    if f is None and solver.calls_map:
        raise ValueError(
            f"{type(solver).__name__} calls the map within its steps, so that telling it values is "
            "not enough: pass `f`, or use a solver that only steps, such as 'anderson'."
        )
