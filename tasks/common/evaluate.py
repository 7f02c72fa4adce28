"""How good a grid model is, and whether it really is at a fixed point."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from models import GridAttractor, GridTransformer

# The perturbed restart starts this far (relative, root mean square) from the equilibrium.
PERTURBATION = 0.5
BATCH = 256


@dataclasses.dataclass(frozen=True)
class Predictions:
    """One pass over a set, all on the CPU.

    Attributes:
        classes: Shape (puzzles, cells): the most likely symbol, counted from 0.
        residual: Shape (puzzles,): rms(f(y) - y) / rms(y); NaN for a model without a solve.
        num_steps: Shape (puzzles,): solver updates.
        state: Where the solve ended; the start of the next.
    """

    classes: Tensor
    residual: Tensor
    num_steps: Tensor
    state: Tensor


@torch.no_grad()
def predict(
    model: GridAttractor | GridTransformer,
    x: Tensor,
    *,
    max_steps: int | None = None,
    start: Tensor | None = None,
) -> Predictions:
    """Solve a set in batches, from the proposal or from `start`."""
    device = next(model.parameters()).device
    parts = []
    for rows in torch.arange(len(x)).split(BATCH):
        first = None if start is None else start[rows].to(device)
        out = model(x[rows].to(device), start=first, max_steps=max_steps)
        blank = torch.full((len(rows),), float("nan"))
        residual, num_steps = blank, blank
        if out.solution is not None:
            scale = out.state.flatten(1).square().mean(1).sqrt()
            residual, num_steps = out.solution.residual / scale, out.solution.num_steps
        columns = (out.logits.argmax(-1), residual, num_steps, out.state)
        parts.append(tuple(column.cpu() for column in columns))
    return Predictions(*(torch.cat(column) for column in zip(*parts, strict=True)))


def scores(classes: Tensor, target: Tensor) -> dict[str, float]:
    """Share of right cells, and of puzzles that are right in every cell."""
    right = classes == target
    return {
        "cell_accuracy": right.float().mean().item(),
        "exact_accuracy": right.all(1).float().mean().item(),
    }


def evaluate(
    model: GridAttractor | GridTransformer, x: Tensor, target: Tensor, max_steps: int, seed: int = 0
) -> tuple[dict[str, Any], Predictions]:
    """Scores at a budget and, for an attractor, the three marks of a fixed point.

    Args:
        model: In evaluation mode.
        x: Inputs, shape (puzzles, cells).
        target: Classes, shape (puzzles, cells), counted from 0.
        max_steps: The budget of solver updates.
        seed: Of the perturbation.

    Returns:
        Figures for the result file: `median_residual`; `exact_accuracy_4x` at four times the
        budget; `restart_agreement`, the share of puzzles that get the same answer from a
        perturbed equilibrium. And the predictions at the budget.
    """
    at_budget = predict(model, x, max_steps=max_steps)
    figures: dict[str, Any] = {"puzzles": len(x), **scores(at_budget.classes, target)}
    if isinstance(model, GridTransformer):
        return figures, at_budget
    longer = predict(model, x, max_steps=3 * max_steps, start=at_budget.state)
    generator = torch.Generator().manual_seed(seed)
    state = at_budget.state
    noise = torch.randn(state.shape, generator=generator, dtype=state.dtype)
    scale = state.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (state.ndim - 1))
    again = predict(model, x, max_steps=max_steps, start=state + PERTURBATION * scale * noise)
    same = (again.classes == at_budget.classes).all(1).float().mean().item()
    figures |= {
        "max_steps": max_steps,
        "mean_steps": at_budget.num_steps.float().mean().item(),
        "median_residual": at_budget.residual.median().item(),
        "residual_90th_percentile": at_budget.residual.quantile(0.9).item(),
        "exact_accuracy_4x": scores(longer.classes, target)["exact_accuracy"],
        "median_residual_4x": longer.residual.median().item(),
        "restart_agreement": same,
    }
    return figures, at_budget


def step_curve(
    model: GridAttractor, x: Tensor, target: Tensor, max_steps: int
) -> Iterator[tuple[int, float, float]]:
    """(steps, exact accuracy, median relative residual) at 0 and each power of two.

    The solve is continued from one count to the next, so a solver with memory restarts it
    there.
    """
    steps, state = 0, None
    while steps <= max_steps:
        target_steps = max(1, 2 * steps)
        part = predict(model, x, max_steps=target_steps - steps, start=state)
        steps, state = target_steps, part.state
        if steps > max_steps:
            return
        yield steps, scores(part.classes, target)["exact_accuracy"], part.residual.median().item()


@torch.no_grad()
def trajectory(
    model: GridAttractor, x: Tensor, steps: int, read: Callable[[Tensor], Tensor]
) -> list[tuple[int, float, Tensor]]:
    """One grid's solve, update by update: (step, relative residual, read(logits))."""
    device = next(model.parameters()).device
    frames, state = [], None
    for step in range(steps + 1):
        out = model(x[None].to(device), start=state, max_steps=1 if step else 0)
        state = out.state
        scale = state.square().mean().sqrt()
        assert out.solution is not None
        residual = (out.solution.residual[0] / scale).item()
        frames.append((step, residual, read(out.logits[0]).cpu()))
    return frames
