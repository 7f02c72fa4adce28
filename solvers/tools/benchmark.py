"""Run and time candidate solvers on one problem, with exact counts and a time limit."""

import contextlib
import dataclasses
import math
import random
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from solvers.base import FixedPointSolver
from solvers.call_errors import explain
from solvers.compiler import LoopName
from solvers.counted_map import FROM_MAP, CheckedMap
from solvers.packing import StatePacking
from solvers.solution import Result, Solution
from solvers.solve import solve
from solvers.status import SampleStatus
from solvers.tools.tuning import Trial
from solvers.torch_internals import is_functorch_wrapped_tensor, pytree
from solvers.types import Map, State
from solvers.verdicts import RUNNING


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


@dataclasses.dataclass(eq=False)
class Candidate:
    """A solver to compare, and what was measured of it so far.

    Attributes:
        label: Name and options, as they are printed.
        loop: The loop that it runs in; see `solve`.
        num_converged: Samples that converged; -1 if no solve has ended.
        worst_residual: Largest relative residual over the samples.
        failure: The most frequent result of samples that did not converge.
        first_seconds: Time of the first solve.
        times: Times of the solves in the race.
        broken_off: The first solve was stopped at its time limit.
        refused: What a derivative of `f` raised, for solvers that need one.
        reason: Why it won or lost.
    """

    solver: FixedPointSolver
    label: str
    loop: LoopName = "eager"
    num_converged: int = -1
    worst_residual: float = math.inf
    failure: Result = Result.converged
    num_evals: int = 0
    rows_evaluated: int = 0
    first_seconds: float = 0.0
    times: list[float] = dataclasses.field(default_factory=list)
    broken_off: bool = False
    refused: Exception | None = None
    reason: str = ""

    @property
    def seconds(self) -> float:
        """Median time of the race, or the time of the first solve if it took part in none."""
        return statistics.median(self.times) if self.times else self.first_seconds

    def rank(self, winner: "Candidate") -> tuple[bool, int, bool, float]:
        """Sort key of the table: the winner, then by success, then by time."""
        return self is not winner, -self.num_converged, not self.times, self.seconds

    def trial(self, num_samples: int) -> Trial:
        """Return the row for the table of results."""
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


class Benchmark:
    """One problem that all candidates solve; it counts every call of `f`."""

    def __init__(
        self,
        f: Map,
        y0: State,
        args: tuple[Any, ...],
        packing: StatePacking,
        max_steps: int,
        clock: Callable[[], float],
    ):
        self.f, self.y0, self.args, self.packing = f, y0, args, packing
        self.max_steps, self.clock = max_steps, clock
        self.num_evals = 0
        self.rows_evaluated = 0
        # Whether the last call of `f` was for a derivative.
        self.deriving = False

    def warm_up(self) -> None:
        """Call `f` once, so that its own errors are raised before any candidate runs."""
        with kept_random_state(self.packing.device):
            try:
                self.call(self.y0, *self.args)
            except FROM_MAP as error:
                explain(error, self.f, self.y0, self.args)
                raise

    def call(self, y: State, *args: Any) -> State:
        """Call `f`, and count the call."""
        leaves = pytree.tree_leaves(y)
        self.num_evals += 1
        self.rows_evaluated += leaves[0].shape[0] if self.packing.batch_dims else 1
        self.deriving = any(is_functorch_wrapped_tensor(y) or y.requires_grad for y in leaves)
        return self.f(y, *args)

    def now(self) -> float:
        """Read the clock once the device has finished its work."""
        if self.packing.device.type != "cpu":
            torch.accelerator.synchronize(self.packing.device)
        return self.clock()

    def solve(self, solver: FixedPointSolver, f: Map, **options: Any) -> tuple[Solution, float]:
        """Solve once from the caller's random state; also return the seconds it took."""
        with kept_random_state(self.packing.device):
            began = self.now()
            solution = solver.iterate(
                f, self.y0, self.args, max_steps=self.max_steps,
                batch_dims=self.packing.batch_dims, **options,
            )  # fmt: skip
            return solution, self.now() - began

    def compile(self, candidate: Candidate) -> None:
        """Compile a candidate's solve, and record what it finds; or what the compiler raised."""
        try:
            solution, candidate.first_seconds = self._in_graph(candidate.solver)
        except Exception as error:
            candidate.refused, candidate.first_seconds = error, math.inf
            candidate.reason = f"cannot be compiled: {type(error).__name__}"
            return
        self.num_evals += solution.num_evals
        candidate.num_evals = solution.num_evals
        candidate.rows_evaluated = solution.rows_evaluated
        self._judge(candidate, solution)

    def _in_graph(self, solver: FixedPointSolver) -> tuple[Solution, float]:
        with kept_random_state(self.packing.device):
            began = self.now()
            solution = solve(
                self.f, self.y0, *self.args, solver=solver, max_steps=self.max_steps,
                batch_dims=self.packing.batch_dims, throw=False, loop="graph",
            )  # fmt: skip
            return solution, self.now() - began

    def try_once(self, candidate: Candidate, limit: float) -> None:
        """Solve once with a time limit in seconds, and record all measurements."""
        calls, rows, began = self.num_evals, self.rows_evaluated, self.now()

        def watch(_: Any, status: SampleStatus, *point: Any) -> None:
            if self.clock() > began + limit and status.num_running:
                candidate.broken_off = True
                status.stop(status.result == RUNNING, Result.max_steps)

        candidate.broken_off = False
        try:
            solution, candidate.first_seconds = self.solve(candidate.solver, self.call, watch=watch)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if not self.deriving:
                error.add_note(f"Raised while trying {candidate.label}.")
                raise
            candidate.refused, candidate.first_seconds = error, math.inf
            candidate.reason = f"needs derivatives of `f`, which raised {type(error).__name__}"
            solution = None
        candidate.num_evals = self.num_evals - calls
        candidate.rows_evaluated = self.rows_evaluated - rows
        if solution is not None and not candidate.broken_off:
            self._judge(candidate, solution)

    def time(self, candidate: Candidate) -> None:
        """Solve once more and record the time, without the overhead of counting calls."""
        if candidate.loop == "graph":
            solution, seconds = self._in_graph(candidate.solver)
        else:
            solution, seconds = self.solve(candidate.solver, self.f)
        self.num_evals += solution.num_evals
        candidate.times.append(seconds)

    def memory(self, candidate: Candidate) -> float:
        """Bytes of solver memory when the samples stop; inf if the solver does not report it."""
        kept: list[tuple[Any, Any]] = []
        self.solve(candidate.solver, self.call, memory=kept)
        leaves = pytree.tree_leaves([carry for _, carry in kept])
        size = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        return size if kept else math.inf

    def _judge(self, candidate: Candidate, solution: Solution) -> None:
        packing, failed = self.packing, ~solution.converged
        candidate.num_converged = int(solution.converged.sum())
        if bool(failed.any()):
            candidate.failure = Result(int(solution.result[failed].mode().values))
            share = f"{int(failed.sum())} of {failed.numel()}"
            candidate.reason = f"{share} samples failed, most often: {candidate.failure.name}"
        with kept_random_state(packing.device):
            fy = CheckedMap(self.call, packing)(solution.value, *self.args)
        image, point = packing.pack(fy).double(), packing.pack(solution.value).double()
        norm = torch.linalg.vector_norm(image - point, dim=1)
        relative = norm / torch.linalg.vector_norm(image, dim=1)
        # 0 / 0 means a solution at zero, and inf / inf means no solution.
        relative = torch.where(norm == 0, 0.0, relative).nan_to_num(math.inf, posinf=math.inf)
        candidate.worst_residual = float(relative.max())
