"""A trained model as a program: `torch.export` of its inference with a budget of steps.

The loop of the solver is part of the program (see `solvers.graph`): it computes all samples until
the last one has stopped or the budget is used, and gives the values and verdicts of a solve. The
file (`.pt2`) holds weights and operations, and needs only `torch.export.load`.
"""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from implicit import FixedPointLayer
from tasks.folders import require_writable
from tasks.output import say


class Inference(nn.Module):
    """The function that is exported: x -> logits and, for a model that solves, its residuals.

    Args:
        model: In evaluation mode; it is copied.
        steps: The largest number of solver updates. None: the model has no solve.

    Raises:
        ValueError: A solver that no program can hold, or a number that is out of its range.
    """

    def __init__(self, model: nn.Module, steps: int | None):
        super().__init__()
        self.model: Any = copy.deepcopy(model).eval()
        layer: FixedPointLayer | None = self.model.solving
        self.solves, self.options = layer is not None, {}
        if layer is None:
            return
        if steps is None or steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {steps!r}.")
        if layer.solver.whole or layer.solver.calls_map:
            raise ValueError(
                f"{layer.solver} cannot be exported: it does more than step, which no program "
                "holds. Use `--solver anderson`, or another that only steps."
            )
        self.options["max_steps"] = steps

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute one batch.

        Returns:
            `logits` and, for a model that solves, `residual`, `converged` and `num_steps`.
        """
        out = self.model(x, **self.options)
        found = {"logits": out.logits}
        if self.solves:
            found |= {
                "residual": out.solution.residual,
                "converged": out.solution.converged,
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
        steps: The largest number of solver updates; None for a model without a solve.
        path: The file, which ends in `.pt2`.
        about: What a reader should know; stored as `about.json`.
        longest: If the length of the entries may vary as well, the largest.

    Raises:
        ValueError: See `Inference`; or another ending, or the file cannot be written.
    """
    if path.suffix != ".pt2":
        raise ValueError(f"A program is a file that ends in `.pt2`: got {str(path)!r}.")
    require_writable(path, is_folder=False, named=str(path))
    say(f"Exporting {path}: the model is traced, its solve included.")
    sizes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if longest is not None:
        sizes[1] = torch.export.Dim("length", min=1, max=longest)
    with warnings.catch_warnings():
        # Blocks of `transformers` note for their own use that they were called.
        warnings.filterwarnings("ignore", "While compiling, we found certain side effects")
        program = torch.export.export(
            Inference(model, steps), (x,), dynamic_shapes=(sizes,), strict=True
        )
    # What torch notes here within a loop, types in place of their names, it cannot write.
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("nn_module_stack", None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(program, path, extra_files={"about.json": json.dumps(about)})
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}). Name another.") from error
