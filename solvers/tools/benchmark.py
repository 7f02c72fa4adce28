"""Run and time candidates on one problem: solved, counted, and broken off if need be."""

import contextlib
import dataclasses
import math
import random
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from solvers.base import FixedPointSolver
from solvers.counted_map import CheckedMap
from solvers.packing import StatePacking
from solvers.solution import Result, Solution
from solvers.status import RUNNING, SampleStatus
from solvers.tools.tuning import Trial
from solvers.torch_internals import is_functorch_wrapped_tensor, pytree
from solvers.types import Map, State


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
    """A candidate and what is known of it so far; `num_converged` is -1 if it did not end."""

    solver: FixedPointSolver
    label: str
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
        """Median of the timed solves, or else the first one's."""
        return statistics.median(self.times) if self.times else self.first_seconds

    def rank(self, winner: "Candidate") -> tuple[bool, int, bool, float]:
        """Sort key of the table: the winner, then by success, then by time."""
        return self is not winner, -self.num_converged, not self.times, self.seconds

    def trial(self, num_samples: int) -> Trial:
        """The row of the caller's table."""
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
    """The problem, solved as often as asked, and every call of `f` counted."""

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
        self.deriving = False

    def warm_up(self) -> None:
        """Call `f` once, and let it raise what it raises."""
        with kept_random_state(self.packing.device):
            self.call(self.y0, *self.args)

    def call(self, y: State, *args: Any) -> State:
        """`f`, counted."""
        leaves = pytree.tree_leaves(y)
        self.num_evals += 1
        self.rows_evaluated += leaves[0].shape[0] if self.packing.batch_dims else 1
        self.deriving = any(is_functorch_wrapped_tensor(y) or y.requires_grad for y in leaves)
        return self.f(y, *args)

    def now(self) -> float:
        """The clock, once the device has done its work."""
        if self.packing.device.type != "cpu":
            torch.accelerator.synchronize(self.packing.device)
        return self.clock()

    def solve(self, solver: FixedPointSolver, f: Map, **options: Any) -> tuple[Solution, float]:
        """One solve from the caller's random state, and its seconds."""
        with kept_random_state(self.packing.device):
            began = self.now()
            solution = solver.iterate(
                f, self.y0, self.args, max_steps=self.max_steps,
                batch_dims=self.packing.batch_dims, **options,
            )  # fmt: skip
            return solution, self.now() - began

    def try_once(self, candidate: Candidate, limit: float) -> None:
        """Solve once with a time limit and note everything."""
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
        """Solve once more, with the bare `f`."""
        solution, seconds = self.solve(candidate.solver, self.f)
        self.num_evals += solution.num_evals
        candidate.times.append(seconds)

    def memory(self, candidate: Candidate) -> float:
        """Bytes that a solver remembers when the samples stop; inf if it does not tell."""
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
        # 0 / 0 is a solution at zero; inf / inf is none.
        relative = torch.where(norm == 0, 0.0, relative).nan_to_num(math.inf, posinf=math.inf)
        candidate.worst_residual = float(relative.max())
