"""How accurate a grid model is, and whether its answers really are fixed points.

A set is worked through batch by batch and only small figures of a puzzle are kept, so that a
set may have any size. Inside a batch, puzzles leave the solve as they converge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from solvers import Solution
from solvers.norms import rms
from solvers.torch_internals import pytree
from solvers.types import State
from tasks.output import SILENT, Progress, decimal
from tasks.threads import count_parts, side_by_side

if TYPE_CHECKING:
    from models import GridAttractor, GridModel, Reasoner

# How one answer is chosen from those of several starts; see `search.Starts.choose`.
Choice = Literal["residual", "vote", "valid"]
# The perturbed restart starts this far (relative, root mean square) from the equilibrium.
PERTURBATION = 0.5
# Puzzles that are restarted: what holds for so many needs no second solve of a whole set.
RESTARTED = 300
# Puzzles of a solve: the more, the longer those that are left make a batch worth its cost.
BATCH = 256


class Predictions(NamedTuple):
    """The answers of a model to some puzzles, and how its solves ended; all on the CPU.

    Attributes:
        classes: Shape (puzzles, cells): the most likely symbol, counted from 0.
        residual: Shape (puzzles,): rms(f(y) - y) / rms(y); NaN for a model without a solve.
        converged: Shape (puzzles,): the solver's verdict; False without a solve.
        num_steps: Shape (puzzles,): solver updates; 0 without a solve.
    """

    classes: Tensor
    residual: Tensor
    converged: Tensor
    num_steps: Tensor

    @classmethod
    def of(cls, logits: Tensor, state: State, solution: Solution | None) -> Predictions:
        """The predictions of a solve that ended in `state`.

        Args:
            logits: Shape (puzzles, cells, symbols).
            state: The last state.
            solution: How the solve ended; None for a model without a solve.
        """
        classes = logits.argmax(-1).cpu()
        if solution is None:
            none = torch.zeros(len(classes), dtype=torch.int64)
            return cls(classes, none / 0, none.bool(), none)
        residual = (solution.residual / rms(state)).cpu()
        return cls(classes, residual, solution.converged.cpu(), solution.num_steps.cpu())

    @classmethod
    def join(cls, parts: Sequence[Predictions]) -> Predictions:
        """Concatenate the predictions of several batches."""
        return cls(*map(torch.cat, zip(*parts, strict=True)))

    def at(self, rows: Tensor) -> Predictions:
        """The predictions of these rows."""
        return Predictions(*(values[rows] for values in self))


def perturbed(state: State, strength: float, generator: torch.Generator) -> State:
    """Normal noise on every leaf, `strength` times the sample's root mean square."""
    scale = strength * rms(state)

    def shake(leaf: Tensor) -> Tensor:
        noise = torch.randn(leaf.shape, generator=generator).to(leaf)
        return leaf + scale.view(-1, *[1] * (leaf.ndim - 1)).to(leaf) * noise

    return pytree.tree_map(shake, state)


def add_path_noise(model: GridModel) -> None:
    """Let EqR add its noise in evaluation as well, as its published code does.

    Raises:
        ValueError: The model has no such noise.
    """
    update: Any = None if model.solving is None else model.solving.module
    path = getattr(update, "path", None)
    if path is None:
        raise ValueError("`--path-noise` has an effect only on a model that is an eqr.")
    path.in_evaluation = True


@torch.no_grad()
def solve_batch(
    model: GridModel, x: Tensor, *, max_steps: int | None = None, start: State | None = None
) -> tuple[Predictions, State]:
    """Solve one batch, from the start of the model or from `start`.

    Returns:
        The predictions, and the state in which the solve ended.
    """
    parts = solve_parts(model, x, max_steps=max_steps, start=start)
    found = [Predictions.of(out.logits, out.state, out.solution) for out in parts]
    return Predictions.join(found), joined_state(parts)


@torch.no_grad()
def solve_parts(
    model: GridModel, x: Tensor, *, max_steps: int | None = None, start: State | None = None
) -> list[Any]:
    """Solve a batch in one part or, on a CPU, in several side by side; see `tasks.threads`.

    Returns:
        The output of the model for each part, in the order of the rows.
    """
    x = x.to(next(model.parameters()).device)
    count = count_parts(model, x)
    size = max(1, -(-len(x) // count))
    rows = [slice(first, first + size) for first in range(0, max(1, len(x)), size)]

    def solve(part: slice) -> Any:
        begin = None if start is None else pytree.tree_map(lambda leaf: leaf[part], start)
        return model(x[part], start=begin, max_steps=max_steps)  # type: ignore[arg-type]

    return side_by_side(solve, rows, count)


def joined_state(parts: Sequence[Any]) -> State:
    """The state in which the solve of a whole batch ended, from the outputs for its parts."""
    return pytree.tree_map(lambda *leaves: torch.cat(leaves), *(out.state for out in parts))


def batches(x: Tensor) -> tuple[Tensor, ...]:
    """Split a set into parts, each for one solve."""
    return x.split(BATCH)


def predict(
    model: GridModel, x: Tensor, *, max_steps: int | None = None, progress: Progress = SILENT
) -> Predictions:
    """Predict a whole set, batch by batch."""
    parts = []
    progress.begin("answers", len(batches(x)))
    for rows in batches(x):
        parts.append(solve_batch(model, rows, max_steps=max_steps)[0])
        progress.advance()
    return Predictions.join(parts)


def scores(classes: Tensor, target: Tensor) -> dict[str, float]:
    """Share of right cells, and of puzzles that are right in every cell."""
    right = classes == target
    return {
        "cell_accuracy": right.double().mean().item(),
        "exact_accuracy": right.all(1).double().mean().item(),
    }


def evidence(predictions: Predictions, max_steps: int) -> dict[str, Any]:
    """The statistics of solves that every evaluation reports."""
    residual = predictions.residual
    return {
        "max_steps": max_steps,
        "converged": predictions.converged.double().mean().item(),
        "mean_steps": predictions.num_steps.double().mean().item(),
        "median_residual": decimal(residual.median()),
        "residual_90th_percentile": decimal(residual.quantile(0.9))
        if len(residual) < 10**6
        else None,
    }


def evaluate(
    model: GridModel,
    x: Tensor,
    target: Tensor,
    max_steps: int,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[dict[str, Any], Predictions]:
    """Scores at a budget and, for a model that solves, three checks that it is at a fixed point.

    Args:
        model: In evaluation mode.
        x: Inputs, shape (puzzles, cells).
        target: Classes, shape (puzzles, cells), counted from 0.
        max_steps: The budget of solver updates.
        seed: Of the perturbation.
        progress: Told of each solve.

    Returns:
        Figures for the result file: share converged and residuals; `exact_accuracy_4x` at
        four times the budget; `restart_agreement`, the share of the first `restarted` puzzles
        that get the same answer from a perturbed equilibrium. And the predictions at the budget.
    """
    if model.solving is None:
        at_budget = predict(model, x, progress=progress)
        return {"puzzles": len(x), **scores(at_budget.classes, target)}, at_budget
    generator = torch.Generator().manual_seed(seed)
    passes: list[tuple[Predictions, Predictions]] = []
    same: list[Tensor] = []
    progress.begin("answers, with more steps, and from perturbed states", 3 * len(batches(x)))
    for rows in batches(x):
        first, state = solve_batch(model, rows, max_steps=max_steps)
        progress.advance()
        passes.append((first, solve_batch(model, rows, max_steps=3 * max_steps, start=state)[0]))
        progress.advance()
        some = slice(max(0, RESTARTED - sum(map(len, same))))
        if len(rows[some]):
            ended = pytree.tree_map(lambda leaf, some=some: leaf[some], state)
            start = perturbed(ended, PERTURBATION, generator)
            again, _ = solve_batch(model, rows[some], max_steps=max_steps, start=start)
            same.append((again.classes == first.classes[some]).all(1))
        progress.advance()
    at_budget, longer = map(Predictions.join, zip(*passes, strict=True))
    restarted = torch.cat(same)
    return {
        "puzzles": len(x),
        **scores(at_budget.classes, target),
        **evidence(at_budget, max_steps),
        "exact_accuracy_4x": scores(longer.classes, target)["exact_accuracy"],
        "converged_4x": longer.converged.double().mean().item(),
        "median_residual_4x": decimal(longer.residual.median()),
        "restarted": len(restarted),
        "restart_agreement": restarted.double().mean().item(),
    }, at_budget


def step_curve(
    model: GridModel, x: Tensor, target: Tensor, max_steps: int, progress: Progress = SILENT
) -> list[tuple[int, float, float]]:
    """(steps, exact accuracy, median relative residual) at each power of two up to the budget.

    The solve is continued from one count to the next, so a solver with memory restarts it
    there.
    """
    counts = [2**k for k in range(max_steps.bit_length()) if 2**k <= max_steps]
    found: dict[int, list[Predictions]] = {count: [] for count in counts}
    progress.begin(f"accuracy by solver steps, of {len(x)}", len(counts) * len(batches(x)))
    for rows in batches(x):
        done, state = 0, None
        for count in counts:
            part, state = solve_batch(model, rows, max_steps=count - done, start=state)
            found[count].append(part)
            done = count
            progress.advance()
    curve = [(count, Predictions.join(parts)) for count, parts in found.items()]
    return [
        (count, scores(at.classes, target)["exact_accuracy"], decimal(at.residual.median()))
        for count, at in curve
    ]


@torch.no_grad()
def trajectory(
    model: GridAttractor | Reasoner, x: Tensor, steps: int
) -> list[tuple[int, float, Tensor]]:
    """Follow the solve of one grid: (number, relative residual, probabilities) of each evaluation.

    Number 0 is the start. The last one is where the solve converged, or that after `steps` updates.
    Only what is drawn is kept of each, so that a solve may be long.
    """
    frames: list[tuple[int, float, Tensor]] = []
    device = next(model.parameters()).device

    def keep(_: object, given: tuple[State, ...], fy: State) -> None:
        y = given[0]
        residual = rms(pytree.tree_map(torch.sub, fy, y)) / rms(y)
        frames.append((len(frames), residual.item(), model.read(y)[0].softmax(-1).cpu()))

    watch = model.solving.module.register_forward_hook(keep)
    try:
        model(x[None].to(device), max_steps=steps)
    finally:
        watch.remove()
    return frames
