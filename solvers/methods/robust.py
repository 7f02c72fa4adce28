"""Several solvers in turn: a sample that one of them does not solve goes on to the next."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from solvers.checks import check_counts
from solvers.methods.anderson import Anderson
from solvers.methods.anderson_safe import AndersonSafe
from solvers.methods.newton_krylov import NewtonKrylov
from solvers.packing import StatePacking
from solvers.promises import Promises
from solvers.solution import Result, Solution
from solvers.torch_internals import pytree
from solvers.trees import take_rows
from solvers.types import Index, Map, Mask, State
from solvers.whole import WholeSolver

# The solvers in order: name, solver, and share of the budget in percent.
TRIED = (
    ("anderson", Anderson(), 20),
    ("newton_krylov", NewtonKrylov(), 30),
    ("newton_krylov(opening=1000000)", NewtonKrylov(opening=10**6), 40),
    ("anderson_safe", AndersonSafe(), 10),
)


@final
@dataclass(frozen=True, kw_only=True)
class Robust(WholeSolver):
    """Four solvers in a fixed order, each on the samples that those before it did not solve.

    | | solver | share of `max_steps` |
    | --- | --- | --- |
    | 0 | `anderson` | 20 % |
    | 1 | `newton_krylov` | 30 % |
    | 2 | `newton_krylov(opening=1000000)`, without a trust region | 40 % |
    | 3 | `anderson_safe` | 10 % |

    Each share is rounded up, and unused steps are not passed on, so that a sample's budget does
    not depend on the other samples of its batch. Every solver starts from y0, not from the point
    where another got stuck. If none converges, the best of their points is returned, with the
    verdict of the solver that found it. `solution.solved_by` says which solver converged. Use it
    when a solution matters more than its cost. With `args`, `f` is called on the unsolved samples
    only; without, on all, and samples that have converged do not move. On easy samples it costs
    what `anderson` costs.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.

    Example:
        >>> import solvers
        >>> y0 = torch.tensor([[1.0], [100.0]], dtype=torch.float64)
        >>> s = solvers.solve(lambda y, _: y - (y**3 - 8), y0, y0, solver="robust", max_steps=200)
        >>> s.value.flatten().round(decimals=4).tolist()
        [2.0, 2.0]
    """

    promises: ClassVar[Promises] = Promises(radius=math.inf, one_call=False, tokens=False)

    def iterate(
        self,
        f: Map,
        y0: State,
        args: tuple[Any, ...] = (),
        *,
        max_steps: int,
        batch_dims: int = 1,
        independent: bool | None = None,
        rhs: State | None = None,
        **options: Any,
    ) -> Solution:
        """Run the solvers in turn; the arguments are those of `FixedPointSolver.iterate`."""
        check_counts(max_steps, batch_dims)
        packing = StatePacking(y0, batch_dims)
        self.check_tokens(packing)
        independent = bool(args) if independent is None else independent
        separate = bool(args) and independent and batch_dims > 0
        found, spent = None, 0
        for position, (_, solver, share) in enumerate(TRIED):
            budget = min(-(-share * max_steps // 100), max_steps - spent)
            if found is not None and (budget == 0 or not bool(_open(found).any())):
                break
            spent += budget
            rows = _open_rows(found, packing, separate)
            start = y0 if found is None else _choose(found.converged, found.value, y0)
            chosen = dataclasses.replace(solver, rtol=self.rtol, atol=self.atol)
            given = (start, args, rhs)
            start, some_args, some_rhs = given if rows is None else take_rows(given, rows)
            new = chosen.iterate(
                f, start, some_args, max_steps=budget, batch_dims=batch_dims, rhs=some_rhs,
                independent=independent, **options,
            )  # fmt: skip
            if found is None:
                none = torch.full_like(new.result, -1)
                solved_by = none.masked_fill(new.converged, position)
                found = dataclasses.replace(new, solved_by=solved_by)
            else:
                found = _merge(found, new, rows, position, joint=not separate)
        assert found is not None
        return dataclasses.replace(found, tried=tuple(name for name, *_ in TRIED))


def _open_rows(found: Solution | None, packing: StatePacking, separate: bool) -> Index | None:
    """Rows with an unsolved sample; None if that is all rows, or all must stay in the batch."""
    if found is None or not separate:
        return None
    rows = _open(found).view(packing.num_rows, -1).any(1)
    return None if bool(rows.all()) else rows.nonzero().flatten()


def _open(s: Solution) -> Mask:
    """Samples to try again: unsolved, and `f` is finite at their start."""
    return ~s.converged & ((s.result != Result.nonfinite) | (s.num_steps > 0))


def _merge(
    old: Solution, new: Solution, rows: Index | None, position: int, *, joint: bool
) -> Solution:
    """Combine the solution so far with that of the next solver, which got `rows` only."""
    before = old if rows is None else old.rows(rows)
    assert before.solved_by is not None
    # A sample that an earlier solver had solved started from its solution, and did not move.
    solved_by = torch.where(before.converged, before.solved_by, position)
    solved_by = solved_by.to(torch.int8).masked_fill(~new.converged, -1)
    better = new.converged | (new.residual < before.residual)
    if joint:  # points of different solvers do not belong together
        better = torch.ones_like(better)
        if rows is None and _failures(new) > _failures(before):
            better, solved_by = ~better, before.solved_by
    merged = dataclasses.replace(
        new,
        value=_choose(better, new.value, before.value),
        residual=torch.where(better, new.residual, before.residual),
        result=torch.where(better, new.result, before.result),
        num_steps=before.num_steps + new.num_steps,
        solved_by=solved_by,
    )
    if rows is not None:
        names = ("value", "residual", "result", "num_steps", "solved_by")
        put = {n: _put(getattr(old, n), rows, getattr(merged, n)) for n in names}
        merged = dataclasses.replace(merged, **put)
    return dataclasses.replace(
        merged,
        num_evals=old.num_evals + new.num_evals,
        rows_evaluated=old.rows_evaluated + new.rows_evaluated,
    )


def _failures(s: Solution) -> tuple[int, float]:
    """Rank of a joint solution: fewer failures are better, then a smaller sum of residuals."""
    return int((~s.converged).sum()), float(s.residual.nan_to_num(math.inf).sum())


def _put(tree: State, rows: Index, new: State) -> State:
    return pytree.tree_map(lambda old, part: old.index_copy(0, rows, part), tree, new)


def _choose(first: Mask, a: State, b: State) -> State:
    """Take the samples in `first` from `a`, and the others from `b`."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(first.view(*first.shape, *[1] * (a.ndim - first.ndim)), a, b)

    return pytree.tree_map(choose, a, b)
