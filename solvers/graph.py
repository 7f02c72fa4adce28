"""The loop as one operator of a compiled graph, which reads no verdict into Python.

`torch.while_loop` repeats one step: a call of the map, the rule of `solvers.verdicts`, and the
solver's update. All samples keep their places, and those that have stopped their points, so that
shapes are fixed and a compiler can fuse what lies between two calls of the map. Values, verdicts
and counts are those of `solvers.loop`, which drops stopped samples from the batch instead.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.base import FixedPointSolver
from solvers.checks import check_counts
from solvers.counted_map import CheckedMap, check_args
from solvers.coupling import Coupling
from solvers.norms import row_norms
from solvers.packing import StatePacking
from solvers.solution import Result, Solution
from solvers.stopped import beside, confirmed, doubtful, measured
from solvers.torch_internals import pytree, while_loop
from solvers.trees import map_tensors
from solvers.types import Flat, Map, Mask, PerSample, State
from solvers.verdicts import (
    RUNNING,
    STALL_STEPS,
    Past,
    Reading,
    StopRule,
    Verdicts,
    judge,
    out_of_budget,
)


class Progress(NamedTuple):
    """What one step hands to the next.

    Attributes:
        step: Updates made.
        next_look: The step at which stalls are checked for next.
        y: Where the map is called next.
        value: Every sample's best point.
        known: Every sample's verdict and what it hangs on.
        norms: Norms of the residual and of f(y) at the last point.
        trial: The samples for which that was only a trial; None if the solver has no trials.
        num_steps: Updates that each sample received.
        rested: The samples that had stopped when the solver last gave up on some.
        mixed: Whether `value` holds points of different steps that may depend on each other.
        memory: The solver's.
    """

    step: Tensor
    next_look: Tensor
    y: Flat
    value: Flat
    known: Verdicts
    norms: tuple[PerSample, PerSample]
    trial: Mask | None
    num_steps: Tensor
    rested: Mask
    mixed: Tensor
    memory: Any


def solve_in_graph(f: Map, y0: State, args: tuple[Any, ...], **options: Any) -> Solution:
    """Solve by a loop that is one operator, with the options of `GraphLoop`."""
    with torch.no_grad():
        return GraphLoop(f, y0, *args, **options).solution()


class GraphLoop:
    """One solve in a graph; see `solvers.solve` for the parameters.

    Raises:
        ValueError: The solver cannot be held by a graph.
    """

    def __init__(
        self,
        f: Map,
        y0: State,
        *args: Any,
        solver: FixedPointSolver,
        max_steps: int = 50,
        batch_dims: int = 1,
        independent: bool | None = None,
        scale: Any = None,
        rhs: State | None = None,
    ):
        check_counts(max_steps, batch_dims)
        solver.check_graph()
        solver = _settled(solver)
        self.packing = packing = StatePacking(y0, batch_dims, scale)
        solver.check_tokens(packing)
        check_args(args, packing)
        self.f, self.solver, self.max_steps = CheckedMap(f, packing), solver, max_steps
        self.args = map_tensors(Tensor.detach, args)
        self.coupling = Coupling(packing, bool(args) if independent is None else independent)
        # What a loop carries are tensors of its own.
        self.y0 = packing.pack(y0).detach().clone()
        self.rhs = None if rhs is None else self.coupling.sizes(packing.pack(rhs))
        self.root = self.y0.new_full((), max(self.y0.shape[1], 1)).sqrt()
        rule = StopRule.of(solver, packing, self.root, linear=rhs is not None)
        self.rule = rule.within(max_steps)

    def solution(self) -> Solution:
        """Run the loop; `num_evals` and `rows_evaluated` are tensors, as no value is read."""

        def goes_on(now: Progress) -> Tensor:
            return (now.step <= self.max_steps) & (now.known.result == RUNNING).any()

        start = self._start()
        empty = self.packing.num_samples == 0
        end: Progress = (
            start if empty else repeat(goes_on, self._advance, start, self.y0, self._why_not())
        )
        now = Reading(*end.norms, end.trial, end.step, look=False)
        known = end.known._replace(result=out_of_budget(self.rule, end.known, now))
        known, extra = (known, end.step) if empty else self._close(end.value, known, end.mixed)
        shape, num_evals = self.packing.batch_shape, end.step + extra
        return Solution(
            value=self.packing.unpack(end.value),
            residual=(known.norm / self.root).view(shape),
            result=known.result.view(shape),
            num_steps=end.num_steps.view(shape),
            num_evals=num_evals,  # type: ignore[arg-type]
            rows_evaluated=num_evals * self.packing.num_rows,  # type: ignore[arg-type]
        )

    def _start(self) -> Progress:
        y, rhs = self.y0, self.rhs

        def fill(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((y.shape[0],), value, dtype=dtype, device=y.device)

        def infinite() -> PerSample:
            return fill(math.inf, y.dtype)

        memory = self.solver.init_static(y)
        zero = torch.zeros((), dtype=torch.int64, device=y.device)
        past = Past(infinite(), infinite() if rhs is None else rhs.clone(), infinite(), infinite())
        result = fill(RUNNING, torch.int8)
        trial = self.solver.on_trial(memory)
        return Progress(
            step=zero,
            next_look=zero + STALL_STEPS,
            y=y,
            value=y.clone(),
            known=Verdicts(infinite(), infinite(), infinite(), result, past),
            norms=(infinite(), infinite()),
            trial=trial,
            num_steps=fill(0, torch.int64),
            rested=fill(False, torch.bool),
            mixed=zero > 0,
            memory=memory,
        )

    def _advance(self, now: Progress) -> Progress:
        """Judge all samples by the value of the map at `y`, and make one step."""
        y, solver, rule, coupling = now.y, self.solver, self.rule, self.coupling
        fy = self._evaluate(y)
        trial = solver.on_trial(now.memory)
        norm, scale = self._norms(y, fy)
        look = now.step >= now.next_look
        first = coupling.largest(norm)
        begun = rule.past(first, coupling.largest(scale) if self.rhs is None else scale, first)
        past = Past(
            *(torch.where(now.step == 0, *pair) for pair in zip(begun, now.known.past, strict=True))
        )
        reading = Reading(norm, scale, trial, now.step, look)
        known, stored = judge(rule, coupling, now.known._replace(past=past), reading, y.shape[1])
        value = torch.where(stored[:, None], y, now.value)
        stale = ~stored & (known.result != int(Result.converged))
        # After the last point that the budget allows, no sample moves.
        moving = (known.result == RUNNING) & (now.step < self.max_steps)
        y_next, memory = y, now.memory
        if y.shape[1]:  # else there is nothing to move
            with self.f.full_precision():
                y_next, memory = solver.step(y, fy, now.memory)
        rounded = self.packing.round(y_next)
        known, rested = self._give_up(known, moving, memory, now.rested)
        if memory is None and y_next is not fy and not coupling.coupled:
            standing = (rounded == y).all(1) & moving & (known.result == RUNNING)
            known = known._replace(result=known.result.masked_fill(standing, int(Result.stalled)))
        return Progress(
            step=now.step + 1,
            next_look=torch.where(look, now.step + now.step // 2, now.next_look),
            y=torch.where((known.result == RUNNING)[:, None], rounded, value),
            value=value,
            known=known,
            norms=(norm, scale),
            trial=trial,
            num_steps=now.num_steps + moving,
            rested=rested,
            mixed=stale.any() if coupling.coupled else now.mixed,
            memory=memory,
        )

    def _give_up(
        self, known: Verdicts, moving: Mask, memory: Any, rested: Mask
    ) -> tuple[Verdicts, Mask]:
        """Stall the samples that the solver gave up, as `SampleStatus.give_up` does."""
        samples = self.solver.given_up(memory)
        if samples is None:
            return known, rested
        settled = known.result >= 0
        if self.coupling.coupled:
            samples = self.coupling.left_alone(samples, settled, rested)
        result = known.result.masked_fill(samples & moving, int(Result.stalled))
        return known._replace(result=result), settled

    def _close(self, value: Flat, known: Verdicts, mixed: Tensor) -> tuple[Verdicts, Tensor]:
        """Call the map once more for each reason for which verdicts still hang on it.

        The reasons are in `solvers.stopped`. Returns the verdicts, and how many calls were made.
        """
        doubts = self._doubts(value, known)
        zero = torch.zeros_like(mixed, dtype=torch.int64)

        def goes_on(now: tuple[Tensor, Mask, Tensor, Verdicts]) -> Tensor:
            mixed, doubts, _, _ = now
            return mixed | doubts.any()

        def call(now: tuple[Tensor, Mask, Tensor, Verdicts]) -> Any:
            mixed, doubts, calls, known = now
            near = beside(value, doubts, self.coupling, self.rule.roundoff)
            y = torch.where(mixed, value, self.packing.round(near))
            read = Reading(*self._norms(y, self._evaluate(y)), trial=None, step=0, look=False)
            joint = measured(self.rule, known, read)
            alone = confirmed(self.rule, known, doubts, read)
            norm = torch.where(mixed, joint.norm, known.norm)
            result = torch.where(mixed, joint.result, alone.result)
            known = known._replace(norm=norm, result=result)
            return mixed & False, self._doubts(value, known) & mixed, calls + 1, known

        _, _, calls, known = repeat(goes_on, call, (mixed, doubts, zero, known), self.y0)
        return known, calls

    def _doubts(self, value: Flat, known: Verdicts) -> Mask:
        if self.rhs is not None:
            return torch.zeros_like(known.result, dtype=torch.bool)
        return doubtful(self.rule, known, row_norms(value))

    def _evaluate(self, y: Flat) -> Flat:
        # A copy, which compilers drop, since `f` may write into its argument.
        return self.packing.pack(self.f(self.packing.unpack(y.clone()), *self.args))

    def _norms(self, y: Flat, fy: Flat) -> tuple[PerSample, PerSample]:
        return row_norms(fy - y), row_norms(fy) if self.rhs is None else self.rhs

    def _why_not(self) -> str:
        return (
            f"{type(self.solver).__name__} cannot be part of a graph: its memory changes its "
            "structure from step to step. Define `init_static`, whose memory keeps it, or pass "
            "`loop='eager'`."
        )


def _settled(solver: FixedPointSolver) -> FixedPointSolver:
    """The same solver, with numbers that are constants of the graph.

    A compiler makes a symbol of a number that is another one than at its first call, and no loop
    takes a symbol that is not an integer. What is read from a string is a constant.
    """
    values = {name: getattr(solver, name) for name in solver.__dataclass_fields__}
    numbers = {
        name: float.fromhex(value.hex())
        for name, value in values.items()
        if isinstance(value, float)
    }
    return dataclasses.replace(solver, **numbers)


def repeat(
    goes_on: Callable[[Any], Tensor],
    body: Callable[[Any], Any],
    start: Any,
    data: Tensor,
    why_not: str = "",
) -> Any:
    """Apply `body` to a pytree as long as `goes_on` holds, as one operator.

    A compiled loop writes its results to the memory of what it was given, although compilers drop
    copies and merge equal tensors: so each tensor that is carried is kept apart from all others.
    What is no tensor stays as it is.

    Args:
        goes_on: From what a step hands on to a bool tensor without dims.
        body: From what a step is given to what it hands on, in the same structure.
        start: What the first step is given. Its first leaf is a count or a truth value.
        data: A tensor whose values no compiler can know.
        why_not: The message if the structure changes.

    Raises:
        ValueError: The structure changes.
    """
    held, spec = pytree.tree_flatten(start)
    tensors = [leaf for leaf in held if isinstance(leaf, Tensor)]
    dtypes = [leaf.dtype for leaf in tensors]

    def join(leaves: Sequence[Tensor]) -> Any:
        rest = iter([leaf.to(dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)])
        whole = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in held]
        return pytree.tree_unflatten(whole, spec)

    def step(*leaves: Tensor) -> tuple[Tensor, ...]:
        after, after_spec = pytree.tree_flatten(body(join(leaves)))
        if after_spec != spec:
            raise ValueError(why_not)
        return _apart([leaf for leaf in after if isinstance(leaf, Tensor)], leaves[0])

    carried = _apart(tensors, data.isnan().sum())
    return join(while_loop(lambda *leaves: goes_on(join(leaves)), step, carried))


def _apart(leaves: Sequence[Tensor], count: Tensor) -> tuple[Tensor, ...]:
    """The same values in memory of their own, which no compiler can merge or leave out.

    `count` is at least 0, which the compiler cannot know. Truth values become numbers, of which
    there are more than two.
    """
    whole = [leaf.to(torch.int8) if leaf.dtype == torch.bool else leaf for leaf in leaves]
    return tuple(torch.where(count >= 0, leaf, number) for number, leaf in enumerate(whole))
