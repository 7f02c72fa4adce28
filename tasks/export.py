"""A trained model as a program: `torch.export` of its inference with a fixed number of steps.

The loop of a solver is Python code, which a program cannot hold. It is therefore written here once
more, as one operator that repeats a step of Picard's iteration. It computes all samples until the
last one has converged or the budget is used; a sample that has converged keeps its value, as in a
solve. The file (`.pt2`) holds weights and operations, and needs only `torch.export.load`.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from implicit import FixedPointLayer
from solvers import Result, Solution
from solvers.methods.picard import Picard
from solvers.norms import rms
from solvers.torch_internals import pytree, while_loop
from solvers.types import State


class WrittenOut(nn.Module):
    """A fixed-point layer whose loop is one operator, which `torch.export` can hold.

    Value, residual, verdict and number of steps are those of the solve, but failures are not told
    apart: a sample that diverges or stalls has the verdict of one whose budget is used up.

    Args:
        module: The map (y, *args) -> y.
        solver: Picard, the only solver that keeps no history.
        steps: Updates.
        batch_dims: See `implicit.FixedPointLayer`.
    """

    def __init__(self, module: nn.Module, solver: Picard, steps: int, batch_dims: int):
        super().__init__()
        self.module, self.solver, self.max_steps = module, solver, steps
        self.batch_dims = batch_dims

    def forward(self, y0: State, *args: Any, max_steps: int | None = None) -> Solution:
        """Solve from `y0`; the budget is that of the program, and `max_steps` is ignored."""
        fy = self.module(y0, *args)
        norm, converged = self._judged(y0, fy)
        # What a loop carries are tensors of its own.
        y, value, num_steps = _copied(y0), _copied(y0), torch.zeros_like(converged).long()
        step = torch.zeros((), dtype=torch.int64, device=norm.device)
        carried = (step, y, fy, value, norm, converged, num_steps)

        def goes_on(step: Tensor, *carried: Any) -> Tensor:
            *_, converged, _ = carried
            return (step < self.max_steps) & ~converged.all()

        def update(
            step: Tensor, y: State, fy: State, value: State, norm: Tensor, converged: Tensor,
            num_steps: Tensor,
        ) -> tuple[Any, ...]:  # fmt: skip
            num_steps = num_steps + ~converged
            y = self._choose(converged, y, self._next(y, fy))
            fy = self.module(y, *args)
            new_norm, within = self._judged(y, fy)
            if self.batch_dims > 1:
                # Tokens move each other: all verdicts are of the last point, which they share.
                return step + 1, y, fy, _copied(y), new_norm, within, num_steps
            gain = ~converged & (within | (new_norm < norm))
            value = self._choose(gain, y, value)
            norm = torch.where(gain, new_norm, norm)
            return step + 1, y, fy, value, norm, converged | within, num_steps

        _, _, _, value, norm, converged, num_steps = while_loop(goes_on, update, carried)
        result = torch.where(converged, int(Result.converged), int(Result.max_steps))
        return Solution(
            value=value, residual=norm, result=result, num_steps=num_steps,
            num_evals=self.max_steps + 1, rows_evaluated=0,
        )  # fmt: skip

    def _judged(self, y: State, fy: State) -> tuple[Tensor, Tensor]:
        """rms(f(y) - y), infinite where it is NaN, and which samples are within tolerance."""
        moved = rms(pytree.tree_map(torch.sub, fy, y), self.batch_dims)
        residual = moved.nan_to_num(math.inf, math.inf)
        limit = self.solver.atol + self.solver.rtol * rms(fy, self.batch_dims)
        return residual, (residual <= limit) & residual.isfinite()

    def _next(self, y: State, fy: State) -> State:
        if not self.solver.damping:
            return fy
        return pytree.tree_map(lambda old, new: torch.lerp(new, old, self.solver.damping), y, fy)

    def _choose(self, mask: Tensor, one: State, other: State) -> State:
        def choose(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(mask.reshape(*mask.shape, *[1] * (a.ndim - mask.ndim)), a, b)

        return pytree.tree_map(choose, one, other)


def _copied(state: State) -> State:
    return pytree.tree_map(torch.clone, state)


class Inference(nn.Module):
    """The function that is exported: x -> logits and, for a model that solves, its residuals.

    Args:
        model: In evaluation mode; it is copied.
        steps: Solver updates. None: the model has no solve.

    Raises:
        ValueError: A solver that cannot be written out, or a number that is out of its range.
    """

    def __init__(self, model: nn.Module, steps: int | None):
        super().__init__()
        self.model: Any = copy.deepcopy(model).eval()
        layer: FixedPointLayer | None = self.model.solving
        self.solves = layer is not None
        if layer is None:
            return
        if steps is None or steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {steps!r}.")
        if not isinstance(layer.solver, Picard):
            raise ValueError(
                f"{layer.solver} cannot be exported: its updates depend on the history of the "
                "solve. Use `--solver picard`, perhaps with a larger `--max-steps`."
            )
        (name,) = [name for name, part in self.model.named_modules() if part is layer]
        loop = WrittenOut(layer.module, layer.solver, steps, layer.batch_dims)
        self.model.set_submodule(name, loop)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute one batch.

        Returns:
            `logits` and, for a model that solves, `residual`, `converged` and `num_steps`.
        """
        out = self.model(x)
        found = {"logits": out.logits}
        if self.solves:
            found |= {
                "residual": out.solution.residual,
                "converged": out.solution.result == int(Result.converged),
                "num_steps": out.solution.num_steps,
            }
        return found


@torch.no_grad()
def write_program(
    model: nn.Module,
    x: Tensor,
    steps: int | None,
    path: Path,
    about: dict[str, Any],
    longest: int | None = None,
) -> None:
    """Write the inference of a model as a program.

    Args:
        model: In evaluation mode, on the CPU.
        x: An example of its input, shape (2 or more, entries): the batch may have any size later.
        steps: Solver updates; None for a model without a solve.
        path: The file, which ends in `.pt2`.
        about: What a reader should know; stored as `about.json`.
        longest: If the length of the entries may vary as well, the largest.

    Raises:
        ValueError: See `Inference`; or another ending, or the file cannot be written.
    """
    if path.suffix != ".pt2":
        raise ValueError(f"A program is a file that ends in `.pt2`: got {str(path)!r}.")
    sizes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if longest is not None:
        sizes[1] = torch.export.Dim("length", min=1, max=longest)
    program = torch.export.export(Inference(model, steps), (x,), dynamic_shapes=(sizes,))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(program, path, extra_files={"about.json": json.dumps(about)})
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}). Name another.") from error
