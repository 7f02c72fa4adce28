"""Choose a solver by measurement: race the candidates on the caller's own problem."""

import contextlib
import dataclasses
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils import _pytree as pytree

from solvers.base import FixedPointSolver
from solvers.layout import Layout
from solvers.registry import SOLVERS, get_solver, names
from solvers.solution import Result, Solution
from solvers.solve import solve
from solvers.types import Map, State

# What is tried of each native solver beside its defaults; of one that is not listed, the defaults.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "anderson": ({"history": 3}, {"history": 5}, {"history": 12}, {"damping": 0.3}),
    "anderson_safe": ({"history": 4},),
    "anderson_type1": ({"history": 4},),
    "broyden": ({"history": 8}, {"history": 32}),
    "picard": ({"damping": 0.3}, {"damping": 0.6}),
}
# The first solve of a candidate is broken off at this multiple of the best time so far (and a
# little, since a first solve of microseconds says nothing); a warm one within a round has to
# stay below this multiple to be in the next; and times this close are equal.
HOPELESS, GRACE_SECONDS, BEHIND, TIE = 3.0, 2e-3, 2.0, 1.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What was measured of one candidate.

    Attributes:
        solver: Registered name and what differs from its defaults, tolerances aside.
        converged: Share of the samples that converged; None if it was broken off.
        worst_residual: Largest rms(f(y) - y) / rms(f(y)) over the samples, measured anew at
            the point returned; inf if not finite, None if the candidate was broken off.
        num_evals: Calls of `f` in one solve, exactly; or until it was broken off.
        rows_evaluated: Rows of the batch that `f` saw in these.
        seconds: Median over the rounds; of the one solve, if it took part in none; a lower
            bound if it was broken off.
        reason: Why it won or lost.
    """

    solver: str
    converged: float | None
    worst_residual: float | None
    num_evals: int
    rows_evaluated: int
    seconds: float
    reason: str

    def cells(self) -> tuple[str, ...]:
        """The row for a printed table."""
        if self.converged is None or self.worst_residual is None:
            share, worst = "-", "-"
        else:
            share, worst = f"{math.floor(1000 * self.converged) / 10:g} %", (
                f"{self.worst_residual:.1e}"
            )
        bound = "> " if self.converged is None else ""
        counts = f"{self.num_evals}", f"{self.rows_evaluated}"
        return (self.solver, share, worst, *counts, f"{bound}{1e3 * self.seconds:.3g}", self.reason)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """The solver that won, and the evidence.

    Attributes:
        solver: Ready for `solve(solver=...)`, at the tolerances asked for.
        name: Its registered name: `get_solver(name, **options)` builds it again.
        options: All of its options.
        table: A row per candidate, the winner first.
        num_evals: Calls of `f` that the whole choice took, exactly.
        advice: What went wrong and what to do, if not all samples converged; else empty.
        verdict: One sentence that says why the winner won.
    """

    solver: FixedPointSolver
    name: str
    options: dict[str, Any]
    table: tuple[Trial, ...]
    num_evals: int
    advice: str
    verdict: str

    def __str__(self) -> str:
        header = ("solver", "converged", "worst", "evals", "rows", "ms", "why")
        rows = [header, *(trial.cells() for trial in self.table)]
        return "\n".join([*aligned(rows), *filter(None, (self.advice, self.verdict))])


@torch.no_grad()
def autotune(
    f: Map,
    y0: State,
    *args: Any,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    max_steps: int = 200,
    batch_dims: int = 1,
    candidates: Iterable[str | FixedPointSolver] | None = None,
    rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> Tuning:
    """Measure solvers on this problem and return the fastest that solves all of it.

    Each candidate first solves once, and is broken off at 3 times the best time so far of
    one that converged on all samples. Those that converged then race in interleaved rounds of
    shuffled order, from which whoever falls to half the best speed drops out. The lowest
    median wall time wins; within 5 %, fewer evaluations do, then less memory, then the order
    of the candidates. The choice holds for the data, batch size and machine it was made on.

    Every solve starts from the caller's random state (Python's, torch's, the device's), which
    is restored. Modes of modules are left alone; buffers that `f` itself writes, such as
    BatchNorm's in training mode, are written. Cost: a solve per candidate, a few of them long
    where it does not converge, and `rounds` of those worth a race.

    Args:
        f: See `solve`.
        y0: See `solve`; at least one sample.
        *args: See `solve`.
        rtol: Tolerance of every candidate, whatever its own.
        atol: See `rtol`.
        max_steps: Budget of updates, at least 1. A candidate that needs more has failed.
        batch_dims: See `solve`.
        candidates: Registered names (with default options) and instances; by default every
            solver of this library that is registered, some with several options.
        rounds: Timed solves of each candidate that is worth it, at least 1.
        clock: Source of seconds; one of your own makes the choice reproducible.

    Returns:
        A `Tuning`. If no candidate converged on all samples, those that did on the most
        compete; if none on any, the smallest worst residual wins. A warning and `advice` say so.

    Raises:
        ValueError: No candidates or samples, an unknown name, or a bad budget or tolerance.
        TypeError: A candidate is neither a name nor a solver; or as `solve`.
        Exception: Whatever `f` raises, unless only its derivative does: then the candidates that
            need one are out.

    Example:
        >>> x = torch.linspace(-1, 1, 8).view(4, 2)
        >>> f = lambda y, x: torch.cos(y) + x
        >>> tuning = autotune(f, torch.zeros_like(x), x, candidates=["anderson", "picard"])
        >>> solve(f, torch.zeros_like(x), x, solver=tuning.solver).converged.all().item()
        True
    """
    for label, value in (("max_steps", max_steps), ("rounds", rounds)):
        _check_at_least_1(label, value)
    layout = Layout(y0, batch_dims)
    if not layout.num_samples:
        raise ValueError(f"`y0` has no samples to measure: batch shape {(*layout.batch_shape,)}.")
    field = _enter(default_candidates() if candidates is None else candidates, rtol, atol)
    stage = _Stage(f, y0, args, layout, max_steps, clock)
    with kept_random_state(layout.device):
        _screen(stage, field)
        rivals = _race(stage, _worth_a_race(field), rounds)
        winner, verdict = _decide(stage, rivals, field)
    advice = _advice(winner, layout.num_samples)
    if advice:
        warnings.warn(advice, stacklevel=2)
    field.sort(key=lambda entry: entry.rank(winner))
    return Tuning(
        solver=winner.solver,
        name=_name(winner.solver),
        options=_options(winner.solver),
        table=tuple(entry.trial(layout.num_samples) for entry in field),
        num_evals=stage.num_evals,
        advice=advice,
        verdict=verdict,
    )


def default_candidates() -> list[FixedPointSolver]:
    """Every solver of this library with its defaults, then the variants."""
    native = [name for name in names() if "." not in name]
    variants = [(name, options) for name in native for options in VARIANTS.get(name, ())]
    return [get_solver(name, **options) for name, options in [*((n, {}) for n in native), *variants]]


@contextlib.contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Restore Python's and torch's random state, on the CPU and this device, at the end."""
    python = random.getstate()
    forked = [device] if device.type not in ("cpu", "mps") else []
    kind = device.type if forked else "cuda"
    with torch.random.fork_rng(forked, device_type=kind):
        try:
            yield
        finally:
            random.setstate(python)


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of a table: the first and last column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *numbers, last in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, last]))
    return lines


@dataclasses.dataclass(eq=False)
class _Entry:
    """A candidate and what is known of it so far; `num_converged` is -1 if it was broken off."""

    solver: FixedPointSolver
    label: str
    num_converged: int = -1
    worst_residual: float = math.inf
    failure: Result = Result.converged
    num_evals: int = 0
    rows_evaluated: int = 0
    first_seconds: float = 0.0
    times: list[float] = dataclasses.field(default_factory=list)
    refused: Exception | None = None
    reason: str = ""

    @property
    def seconds(self) -> float:
        return statistics.median(self.times) if self.times else self.first_seconds

    def rank(self, winner: "_Entry") -> tuple[bool, int, bool, float]:
        """Sort key of the table: the winner, then by success, then by time."""
        return self is not winner, -self.num_converged, not self.times, self.seconds

    def trial(self, num_samples: int) -> Trial:
        over = self.num_converged < 0
        return Trial(
            solver=self.label,
            converged=None if over else self.num_converged / num_samples,
            worst_residual=None if over else self.worst_residual,
            num_evals=self.num_evals,
            rows_evaluated=self.rows_evaluated,
            seconds=self.seconds,
            reason=self.reason,
        )


class _OutOfTime(BaseException):
    """Unwinds a solve; no `except Exception` of anybody else can swallow it."""


class _Stage:
    """The problem, solved as often as asked, and every call of `f` counted."""

    def __init__(
        self,
        f: Map,
        y0: State,
        args: tuple[Any, ...],
        layout: Layout,
        max_steps: int,
        clock: Callable[[], float],
    ):
        self.f, self.y0, self.args, self.layout = f, y0, args, layout
        self.max_steps, self.clock = max_steps, clock
        self.num_evals = 0
        self.rows_evaluated = 0
        self.deadline = math.inf
        self.deriving = False

    def call(self, y: State, *args: Any) -> State:
        """`f`, unless the time is up."""
        if self.clock() > self.deadline:
            raise _OutOfTime
        leaves = pytree.tree_leaves(y)
        self.num_evals += 1
        self.rows_evaluated += leaves[0].shape[0] if self.layout.batch_dims else 1
        self.deriving = any(map(is_functorch_wrapped_tensor, leaves))
        return self.f(y, *args)

    def now(self) -> float:
        """The clock, once the device has done its work."""
        if self.layout.device.type != "cpu":
            torch.accelerator.synchronize(self.layout.device)
        return self.clock()

    def solve(self, solver: FixedPointSolver, f: Map) -> tuple[Solution, float]:
        """One solve from the caller's random state, and its seconds."""
        with kept_random_state(self.layout.device):
            began = self.now()
            solution = solve(
                f, self.y0, *self.args, solver=solver, max_steps=self.max_steps, throw=False,
                batch_dims=self.layout.batch_dims,
            )  # fmt: skip
            return solution, self.now() - began

    def screen(self, entry: _Entry, limit: float) -> None:
        """Solve once with a time limit and note everything."""
        calls, rows, began = self.num_evals, self.rows_evaluated, self.now()
        self.deadline = began + limit
        solution = None
        try:
            solution, entry.first_seconds = self.solve(entry.solver, self.call)
        except _OutOfTime:
            entry.first_seconds = self.now() - began
            entry.reason = f"broken off at {HOPELESS:g} times the best time so far"
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if not self.deriving:
                error.add_note(f"Raised while trying {entry.label}.")
                raise
            entry.refused = error
            entry.reason = f"needs derivatives of `f`, which raised {type(error).__name__}"
        entry.num_evals = self.num_evals - calls
        entry.rows_evaluated = self.rows_evaluated - rows
        self.deadline = math.inf
        if solution is not None:
            self._judge(entry, solution)

    def time(self, entry: _Entry) -> None:
        """Solve once more, with the bare `f`."""
        solution, seconds = self.solve(entry.solver, self.f)
        self.num_evals += solution.num_evals
        entry.times.append(seconds)

    def memory(self, entry: _Entry) -> float:
        """Bytes that a solver remembers when the samples stop; inf if it does not tell."""
        kept: list[tuple[Any, Any]] = []
        with kept_random_state(self.layout.device):
            entry.solver.iterate(
                self.call, self.y0, self.args, max_steps=self.max_steps,
                batch_dims=self.layout.batch_dims, memory=kept,
            )  # fmt: skip
        leaves = pytree.tree_leaves([carry for _, carry in kept])
        size = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        return size if kept else math.inf

    def _judge(self, entry: _Entry, solution: Solution) -> None:
        layout, failed = self.layout, ~solution.converged
        entry.num_converged = int(solution.converged.sum())
        if bool(failed.any()):
            entry.failure = Result(int(solution.result[failed].mode().values))
            share = f"{int(failed.sum())} of {failed.numel()}"
            entry.reason = f"{share} samples failed, most often: {entry.failure.name}"
        with kept_random_state(layout.device):
            fy = self.call(solution.value, *self.args)
        fy = layout.accept(solution.value, fy, torch.is_autocast_enabled(layout.device.type))
        image, point = layout.pack(fy).double(), layout.pack(solution.value).double()
        norm = torch.linalg.vector_norm(image - point, dim=1)
        relative = norm / torch.linalg.vector_norm(image, dim=1)
        # 0 / 0 is a solution at zero; inf / inf is none.
        relative = torch.where(norm == 0, 0.0, relative).nan_to_num(math.inf, posinf=math.inf)
        entry.worst_residual = float(relative.max())


def _enter(
    candidates: Iterable[str | FixedPointSolver], rtol: float, atol: float
) -> list[_Entry]:
    """An entry for each different candidate, all at the same tolerances."""
    listed = [candidates] if isinstance(candidates, str | FixedPointSolver) else candidates
    resolved = [SOLVERS.resolve(candidate) for candidate in listed]
    field: list[_Entry] = []
    for solver in resolved:
        solver = dataclasses.replace(solver, rtol=rtol, atol=atol)
        if all(solver != entry.solver for entry in field):
            field.append(_Entry(solver, describe(solver)))
    if not field:
        raise ValueError(
            "`candidates` is empty. Pass names or solvers, or leave it out to try all of: "
            f"{', '.join(names())}."
        )
    return field


def _screen(stage: _Stage, field: list[_Entry]) -> None:
    """One solve each; the limit counts from the first that solves everything."""
    stage.call(stage.y0, *stage.args)  # warm up, and let `f` raise what it raises
    best = math.inf
    for entry in field:
        stage.screen(entry, HOPELESS * best + GRACE_SECONDS)
        if entry.num_converged == stage.layout.num_samples:
            best = min(best, entry.first_seconds)
    if all(entry.refused for entry in field):
        assert field[0].refused is not None
        raise field[0].refused


def _worth_a_race(field: list[_Entry]) -> list[_Entry]:
    """Those with the most samples converged, if any, that are not hopelessly slow."""
    most = max(entry.num_converged for entry in field)
    best = [entry for entry in field if entry.num_converged == most]
    if most == 0:
        return [min(best, key=lambda entry: entry.worst_residual)]
    limit = HOPELESS * min(entry.first_seconds for entry in best) + GRACE_SECONDS
    return [entry for entry in best if entry.first_seconds <= limit]


def _race(stage: _Stage, rivals: list[_Entry], rounds: int) -> list[_Entry]:
    """Time the rivals side by side; return those who stayed to the end."""
    for number in range(rounds if len(rivals) > 1 else 1):
        order = list(rivals)
        random.Random(number).shuffle(order)
        for entry in order:
            stage.time(entry)
        limit = BEHIND * min(min(entry.times) for entry in rivals)
        rivals = [entry for entry in rivals if min(entry.times) <= limit]
    return rivals


def _decide(stage: _Stage, rivals: list[_Entry], field: list[_Entry]) -> tuple[_Entry, str]:
    """The winner and the sentence for it; the others get their reasons."""
    fastest = min(entry.seconds for entry in rivals)
    tied = [entry for entry in rivals if entry.seconds <= TIE * fastest]
    fewest = min(entry.num_evals for entry in tied)
    frugal = [entry for entry in tied if entry.num_evals == fewest]
    memory = {e.label: stage.memory(e) for e in frugal} if len(frugal) > 1 else {}
    winner = min(frugal, key=lambda entry: memory.get(entry.label, 0.0))
    for entry in field:
        if entry in tied and entry is not winner:
            entry.reason = _tie(entry, winner, memory)
        elif not entry.reason:
            entry.reason = f"{entry.seconds / winner.seconds:.2f} times the winner's time"
    winner.reason = "won" + (f"; {winner.reason}" if winner.failure else "")
    return winner, _verdict(stage, winner, tied, rivals, memory)
