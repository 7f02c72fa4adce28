"""Everything that is measured and drawn once a model is trained."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import GridAttractor, GridTransformer
from tasks.common.evaluate import evaluate, predict, step_curve, trajectory
from tasks.common.plots import plot_steps
from tasks.common.report import print_table
from tasks.sudoku.board import Board, Puzzle, is_valid_solution
from tasks.sudoku.pictures import animate_convergence, draw_convergence
from tasks.sudoku.task import as_classes

# Upper ends of the bands of rating (guesses of our exact solver) that accuracy is split by.
BANDS = (0, 3, 10, 30, 100, 10**9)
CURVE_PUZZLES = 300
FRAMES = 32


def evaluate_puzzles(
    model: GridAttractor | GridTransformer,
    puzzles: Sequence[Puzzle],
    board: Board,
    max_steps: int,
) -> dict[str, Any]:
    """All figures for a list of puzzles, as JSON values."""
    questions, target = as_classes(puzzles, board)
    figures, predictions = evaluate(model, questions, target, max_steps)
    answers = predictions.classes + 1
    figures["valid"] = is_valid_solution(questions, answers).float().mean().item()
    figures["accuracy_by_rating"] = _by_rating(puzzles, (predictions.classes == target).all(1))
    if isinstance(model, GridAttractor):
        rows = slice(0, CURVE_PUZZLES)
        curve = list(step_curve(model, questions[rows], target[rows], 4 * max_steps))
        figures["curve"] = [
            {"steps": steps, "exact_accuracy": exact, "median_residual": residual}
            for steps, exact, residual in curve
        ]
    return figures


def _by_rating(puzzles: Sequence[Puzzle], right: Tensor) -> list[dict[str, Any]]:
    ratings = torch.tensor([puzzle.rating for puzzle in puzzles])
    rows, low = [], 0
    for high in BANDS:
        inside = (ratings >= low) & (ratings <= high)
        if bool(inside.any()):
            exact = right[inside].float().mean().item()
            label = f"{low}" if low == high else f"{low}-{high}" if high < 10**9 else f"{low}+"
            rows.append({"rating": label, "puzzles": int(inside.sum()), "exact_accuracy": exact})
        low = high + 1
    return rows


def draw(
    model: GridAttractor, puzzle: Puzzle, figures: dict[str, Any], board: Board, folder: Path
) -> list[Path]:
    """The accuracy curve, and one puzzle as it converges, still and moving."""
    curve = figures["curve"]
    paths = [
        plot_steps(
            [row["steps"] for row in curve],
            [row["exact_accuracy"] for row in curve],
            [row["median_residual"] for row in curve],
            folder / "steps.png",
            "Held-out puzzles against solver steps",
        )
    ]
    question, target = as_classes([puzzle], board)
    frames = trajectory(model, question[0], FRAMES, lambda logits: logits.softmax(-1))
    asked, answer = question[0].tolist(), (target[0] + 1).tolist()
    paths.append(draw_convergence(board, asked, frames, answer, folder / "convergence.png"))
    paths.append(animate_convergence(board, asked, frames, answer, folder / "convergence.gif"))
    return paths


def print_figures(title: str, figures: dict[str, Any]) -> None:
    """The final table."""
    rows = {
        "puzzles": f"{figures['puzzles']}",
        "exact accuracy": f"{figures['exact_accuracy']:.1%}",
        "valid solutions": f"{figures['valid']:.1%}",
        "cell accuracy": f"{figures['cell_accuracy']:.2%}",
    }
    if "median_residual" in figures:
        rows |= {
            "solver steps": f"{figures['mean_steps']:.1f} on average of {figures['max_steps']}",
            "median relative residual": f"{figures['median_residual']:.1e}",
            "exact accuracy, 4 x the steps": f"{figures['exact_accuracy_4x']:.1%}",
            "same answer from a perturbed start": f"{figures['restart_agreement']:.1%}",
        }
    for band in figures["accuracy_by_rating"]:
        rows[f"rating {band['rating']}"] = (
            f"{band['exact_accuracy']:.1%} of {band['puzzles']} puzzles"
        )
    print_table(title, rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solved:
    """A model's answer to one puzzle."""

    answer: list[int]
    num_steps: int
    residual: float
    valid: bool


def solve_puzzles(
    model: GridAttractor | GridTransformer, questions: list[list[int]], max_steps: int
) -> list[Solved]:
    """Answer puzzles whose solution nobody told."""
    x = torch.tensor(questions)
    predictions = predict(model, x, max_steps=max_steps)
    answers = predictions.classes + 1
    valid = is_valid_solution(x, answers)
    return [
        Solved(
            answer=answers[i].tolist(),
            num_steps=int(predictions.num_steps[i].nan_to_num()),
            residual=float(predictions.residual[i]),
            valid=bool(valid[i]),
        )
        for i in range(len(x))
    ]
