"""What takes the place of numbers, where a training step runs on fake tensors.

Fake tensors have shapes and no numbers. `PlainSteps` stands in for a solver, which would look at
residuals, and `Assumed` answers where any other code reads a number.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from implicit import FixedPointLayer
from solvers import FixedPointSolver, Solution, solve
from solvers.torch_internals import TorchDispatchMode, cpu_attention, item_operator, pytree
from solvers.whole import WholeSolver
from tasks.planning.peak_memory import PeakMemory

FLOAT32 = 4
# A solver's memory is measured on states of so many numbers, and of twice as many.
PROBE_ENTRIES, PROBE_ROWS = 256, 16


@dataclasses.dataclass(frozen=True)
class SolverMemory:
    """Bytes that a solver holds of a sample besides its point and the value there.

    Attributes:
        fixed: Whatever the size of the sample's state.
        each: For each number of it.
    """

    fixed: float
    each: float

    @classmethod
    def of(cls, solver: FixedPointSolver, steps: int) -> "SolverMemory":
        """Measured at the peak of real solves of a map that costs little, on small states."""
        small, large = (_solver_peak(solver, steps, n * PROBE_ENTRIES) for n in (1, 2))
        each = (large - small) / PROBE_ENTRIES
        # The map's own image and the tensor before it are the network's.
        return cls(fixed=max(0.0, small - each * PROBE_ENTRIES), each=max(0.0, each - 2 * FLOAT32))

    def of_state(self, y: Any, batch_dims: int) -> int:
        """Bytes for a batch of these states."""
        leaves = pytree.tree_leaves(y)
        samples = leaves[0].shape[:batch_dims].numel()
        return round(samples * self.fixed + self.each * sum(leaf.numel() for leaf in leaves))


def _solver_peak(solver: FixedPointSolver, steps: int, entries: int) -> float:
    """Bytes for each sample of a solve that uses its whole budget."""
    solver = dataclasses.replace(solver, rtol=0.0, atol=0.0)
    generator = torch.Generator().manual_seed(0)
    y0 = torch.randn(PROBE_ROWS, entries, generator=generator)
    with PeakMemory([y0]) as live:
        cheap = lambda y, x: torch.sin(x - 0.5 * y)  # noqa: E731
        solve(cheap, y0, y0, solver=solver, max_steps=steps, throw=False)
    return live.peak / PROBE_ROWS


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainSteps(WholeSolver):
    """In place of a solver: call the map, record what it would, and hold as much memory.

    It makes all the updates of its budget, reads no number, and reports that all is well.

    Attributes:
        memory: Of the solver that it stands in for.
        hold: Told of the tensor that takes up that memory.
    """

    estimates_inverse: ClassVar[bool] = True
    recordable: ClassVar[bool] = True

    memory: SolverMemory = SolverMemory(0.0, 0.0)
    hold: Callable[[Tensor], None] = lambda _: None

    def iterate(
        self,
        f: Callable[..., Any],
        y0: Any,
        args: tuple[Any, ...] = (),
        *,
        max_steps: int,
        batch_dims: int = 1,
        memory: list[tuple[Tensor, Any]] | None = None,
        **_unused: Any,
    ) -> Solution:
        """Make the updates, and one call more to measure the residual."""
        held = Held(torch.empty(self.memory.of_state(y0, batch_dims), dtype=torch.uint8))
        self.hold(held.memory)

        def call(y: Any) -> Any:
            return pytree.tree_map(lambda new, old: new.to(old.dtype), f(y, *args), y)

        y = y0
        for _ in range(max_steps):
            y = call(y)
        norms = pytree.tree_map(lambda a, b: _norm(a - b, batch_dims), call(y), y)
        residual = torch.stack(pytree.tree_leaves(norms)).sum(0)
        if memory is not None:
            memory.append((torch.arange(residual.numel()), held))
        return Solution(
            value=y,
            residual=residual,
            result=torch.zeros_like(residual, dtype=torch.int8, requires_grad=False),
            # A single number, whose value fake tensors know.
            num_steps=torch.tensor([max_steps]),
            num_evals=max_steps + 1,
            rows_evaluated=0,
        )


def _norm(difference: Tensor, batch_dims: int) -> Tensor:
    return torch.linalg.vector_norm(difference.reshape(*difference.shape[:batch_dims], -1), dim=-1)


@dataclasses.dataclass(frozen=True)
class Held:
    """A solver's memory as `PlainSteps` leaves it to modes that use it in the backward pass."""

    memory: Tensor

    def transposed_inverse(self, v: Tensor) -> Tensor:
        """Some tensor of the same shape."""
        return v.clone()


class Assumed(TorchDispatchMode):
    """What a program reads of fake tensors, which have no numbers.

    Nothing odd happens in a planned step: where the question is whether any entry is set, as in
    `failed.any()`, the answer is no; the largest entry of a tensor, such as the longest loop of a
    batch, is given; and everything else that is read, such as `converged.all()`, is one.

    Args:
        largest: Answer to `x.max()`.
    """

    def __init__(self, largest: int) -> None:
        super().__init__()
        self.answers = {torch.ops.aten.any.default: 0, torch.ops.aten.max.default: largest}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, or answer in its place."""
        if func.overloadpacket is cpu_attention()[1] and args[0] is None:
            # Without a cotangent the kernel computes nothing; as a fake one it returns zeros.
            return None, None, None
        if func is item_operator():
            return _read(lambda: func(*args, **(kwargs or {})), 1)
        out = func(*args, **(kwargs or {}))
        if func in self.answers:
            out = torch.tensor(_read(out.item, self.answers[func]), dtype=out.dtype)
        return out


def _read(number: Callable[[], Any], otherwise: int) -> Any:
    """The number where it is known, as that of a tensor made from it is."""
    try:
        return number()
    except RuntimeError:  # of no public class: the number depends on data
        return otherwise


def solve_plainly(layer: FixedPointLayer, solver: PlainSteps) -> None:
    """Let a layer make plain steps, in its forward and in its adjoint solve."""
    layer.solver = solver
    if getattr(layer.backward_mode, "solver", None) is not None:
        # By default an adjoint equation goes to the forward solver.
        layer.backward_mode = dataclasses.replace(layer.backward_mode, **{"solver": solver})
