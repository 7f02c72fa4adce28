"""What is measured of a trained grid model, printed and drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import GridAttractor, GridModel, Reasoner
from tasks.output import SILENT, Progress, with_interval, wrapped
from tasks.puzzles.config import GridConfig
from tasks.puzzles.evaluate import evaluate, evidence, predict, scores, step_curve, trajectory
from tasks.puzzles.search import (
    CASES,
    breadth_curve,
    calibration,
    diagnose,
    search,
    solve_from_starts,
)
from tasks.puzzles.task import GridTask
from tasks.reports.logger import print_table
from tasks.reports.plots import (
    HELD_OUT_RESIDUAL,
    Subplot,
    plot_breadth,
    plot_calibration,
    plot_steps,
)

CURVE_PUZZLES = 300
# Of the picture of training.
SUBPLOTS = (
    Subplot(
        "loss (nats per cell)",
        {
            "loss": "training batch",
            "first_segment_loss": "of it, first segment of a solve",
            "last_segment_loss": "of it, last segment",
        },
        log=True,
    ),
    Subplot(
        "accuracy (%)",
        {
            "cell_accuracy": "cells right, training batch",
            "exact_accuracy": "all right, training batch",
            "test_exact": "all right, held-out",
        },
        percent=True,
    ),
    Subplot(
        "median residual\nrms of f(y) \N{MINUS SIGN} y", {"residual": "training batch"}, log=True
    ),
    HELD_OUT_RESIDUAL,
)


def measure(
    task: GridTask[Any],
    model: GridModel,
    puzzles: Sequence[Any],
    config: GridConfig,
    quick: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """All metrics of a list of puzzles, as JSON values; `quick`: only the scores at the budget."""
    x, target = task.encode(puzzles, config)
    if quick:
        predictions = predict(model, x, max_steps=config.solve.eval_max_steps, progress=progress)
        figures = {"puzzles": len(x), **scores(predictions.classes, target)}
        if model.solving is not None:
            figures |= evidence(predictions, config.solve.eval_max_steps)
    else:
        budget = config.solve.eval_max_steps
        figures, predictions = evaluate(model, x, target, budget, progress=progress)
    valid = task.is_valid(x, predictions.classes, config)
    figures["valid"] = valid.double().mean().item()
    right = (predictions.classes == target).all(1)
    figures["accuracy_by_rating"] = _by_rating(puzzles, right, valid, task.bands)
    if model.solving is not None:
        figures["wrong_among_converged"] = int((predictions.converged & ~valid).sum())
        figures["accuracy_by_residual"] = calibration(predictions, target)
        if not quick:
            rows = slice(0, CURVE_PUZZLES)
            curve = step_curve(
                model, x[rows], target[rows], 4 * config.solve.eval_max_steps, progress
            )
            figures["curve"] = [
                {"steps": steps, "exact_accuracy": exact, "median_residual": residual}
                for steps, exact, residual in curve
            ]
    return figures


def _by_rating(
    puzzles: Sequence[Any], right: Tensor, valid: Tensor, bands: tuple[int, ...]
) -> list[dict[str, Any]]:
    ratings = torch.tensor([puzzle.rating for puzzle in puzzles])
    rows, low = [], 0
    for high in (*bands, 10**9):
        inside = (ratings >= low) & (ratings <= high)
        if bool(inside.any()):
            label = f"{low}" if low == high else f"{low}-{high}" if high < 10**9 else f"{low}+"
            rows.append(
                {
                    "rating": label,
                    "puzzles": int(inside.sum()),
                    "exact_accuracy": right[inside].double().mean().item(),
                    "valid": valid[inside].double().mean().item(),
                }
            )
        low = high + 1
    return rows


def scale(
    task: GridTask[Any],
    model: GridModel,
    puzzles: Sequence[Any],
    config: GridConfig,
    options: Any,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Breadth, calibration and diagnosis, for `eval --breadth`; plots if a folder is named."""
    _check_solves(model, "--breadth")
    x, target = task.encode(puzzles, config)
    starts = solve_from_starts(
        model,
        x,
        max_steps=config.solve.eval_max_steps,
        breadth=options.breadth,
        noise=options.noise,
        valid=lambda questions, classes: task.is_valid(questions, classes, config),
        progress=progress,
    )
    chosen = starts.choose(options.choose, options.breadth)
    figures: dict[str, Any] = {
        "breadth": options.breadth,
        "choose": options.choose,
        "exact_accuracy_broad": scores(chosen.classes, target)["exact_accuracy"],
        "valid_broad": task.is_valid(x, chosen.classes, config).double().mean().item(),
        "breadth_curve": breadth_curve(starts, target),
        "calibration": calibration(chosen, target),
        "cases": diagnose(starts, target),
    }
    if options.draw is not None:
        options.draw.mkdir(parents=True, exist_ok=True)
        draw_scaling(figures | {"puzzles": len(x)}, options.draw)
        x, target = x[:CURVE_PUZZLES], target[:CURVE_PUZZLES]
        columns = ("steps", "exact_accuracy", "median_residual")
        curve = step_curve(model, x, target, config.solve.eval_max_steps, progress)
        rows: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in curve]
        figures["depth_curve"] = rows
        draw_steps(rows, options.draw / "depth.png", task.noun, len(x), _solver(config))
    return figures


def search_curve(
    task: GridTask[Any],
    model: GridModel,
    puzzles: Sequence[Any],
    config: GridConfig,
    options: Any,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Scores after 0, 1, 2, ... attempts at guessing, for `eval --attempts`."""
    _check_solves(model, "--attempts")
    x, target = task.encode(puzzles, config)
    answers, updates = search(
        model,
        x,
        valid=lambda questions, classes: task.is_valid(questions, classes, config),
        assume=task.assume,
        max_steps=config.solve.eval_max_steps,
        attempts=options.attempts,
        guesses=options.guesses,
        progress=progress,
    )
    rows = [
        {
            "attempts": number,
            "exact_accuracy": scores(classes, target)["exact_accuracy"],
            "valid": task.is_valid(x, classes, config).double().mean().item(),
        }
        for number, classes in enumerate(answers)
    ]
    right = (answers[-1] == target).all(1)
    valid = task.is_valid(x, answers[-1], config)
    return {
        "guesses": options.guesses,
        "search_curve": rows,
        "search_updates": updates,
        "searched_accuracy_by_rating": _by_rating(puzzles, right, valid, task.bands),
    }


def _check_solves(model: GridModel, flag: str) -> None:
    if model.solving is None:
        raise ValueError(f"`{flag}` needs a model that solves; a transformer has one answer.")


def draw_scaling(figures: dict[str, Any], folder: Path) -> None:
    """Draw what several starts bring, and how accurate answers are by their residual."""
    puzzles, breadth = figures["puzzles"], figures["breadth"]
    plot_breadth(figures["breadth_curve"], folder / "breadth.png", puzzles)
    title = f"Is a converged answer right? {puzzles:,} puzzles, one start"
    if breadth > 1:
        title = title.replace("one start", f"by {figures['choose']} among {breadth} starts")
    plot_calibration(figures["calibration"], folder / "calibration.png", title)


def draw_steps(
    curve: Sequence[dict[str, Any]],
    path: Path,
    noun: str,
    puzzles: int,
    solver: tuple[str, float | None],
) -> Path:
    """Draw accuracy and residual by the number of steps.

    Args:
        curve: `steps`, `exact_accuracy` and `median_residual`.
        path: The PNG, in a folder that exists.
        noun: What one puzzle is called.
        puzzles: How many were evaluated, of which the curve has the first `CURVE_PUZZLES`.
        solver: Its name and its tolerance.
    """
    name, rtol = solver
    columns = ("steps", "exact_accuracy", "median_residual")
    steps, exact, residual = ([row[key] for row in curve] for key in columns)
    title = f"Held-out {noun}s by solver steps, {name}"
    return plot_steps(steps, exact, residual, path, title, min(puzzles, CURVE_PUZZLES), rtol)


def _solver(config: GridConfig) -> tuple[str, float | None]:
    """Of the evaluation: its name and its tolerance."""
    solver = config.solve.evaluation_solver()
    return type(solver).__name__, getattr(solver, "rtol", None)


def draw_run(
    task: GridTask[Any],
    model: GridAttractor | Reasoner,
    puzzle: Any,
    figures: dict[str, Any],
    config: GridConfig,
    folder: Path,
) -> list[Path]:
    """Draw accuracy against solver steps, and the solve of one puzzle."""
    steps = folder / "steps.png"
    path = draw_steps(figures["curve"], steps, task.noun, figures["puzzles"], _solver(config))
    x, _ = task.encode([puzzle], config)
    frames = trajectory(model, x[0], config.solve.eval_max_steps)
    return [path, *task.draw(puzzle, frames, config, folder)]


def print_figures(
    title: str, figures: dict[str, Any], task: GridTask[Any], note: str | None = None
) -> None:
    """Print the table of an evaluation, and below it what else there is to know."""
    count = figures["puzzles"]
    main = {
        f"{task.noun}s": f"{count}",
        "exact accuracy": with_interval(figures["exact_accuracy"], count),
        task.verdict: with_interval(figures["valid"], count),
        "cell accuracy": f"{figures['cell_accuracy']:.2%}",
    }
    solves: dict[str, str] = {}
    if "median_residual" in figures:
        solves |= {
            "converged": f"{figures['converged']:.1%}",
            "wrong among the converged": _wrong(figures),
            "solver steps": f"{figures['mean_steps']:.1f} on average of {figures['max_steps']}",
            "median relative residual": f"{figures['median_residual']:.1e}",
        }
    if "exact_accuracy_4x" in figures:
        solves |= {
            "exact accuracy, 4 x the steps": with_interval(figures["exact_accuracy_4x"], count),
            "same answer from a perturbed start": f"{figures['restart_agreement']:.1%} of "
            f"{figures['restarted']}",
        }
    residuals = {
        f"exact, residual {row['residual']}": _share(row, task)
        for row in figures.get("accuracy_by_residual", ())
    }
    ratings = {
        f"exact, rating {row['rating']}": _share(row, task) for row in figures["accuracy_by_rating"]
    }
    scaled: dict[str, str] = {}
    for row in figures.get("breadth_curve", ()):
        shares = ", ".join(f"{row[name]:.1%} by {name}" for name in row if name != "breadth")
        scaled[f"breadth {row['breadth']}"] = shares
    for row in figures.get("search_curve", ()):
        if row["attempts"] & (row["attempts"] - 1) == 0:  # 0 and the powers of two
            exact = with_interval(row["exact_accuracy"], count)
            scaled[f"{row['attempts']} attempts with guesses"] = exact
    if "search_updates" in figures:
        scaled["solver updates of a puzzle, with guesses"] = f"{figures['search_updates']:.0f}"
    for row in figures.get("searched_accuracy_by_rating", ()):
        scaled[f"with guesses, rating {row['rating']}"] = _share(row, task)
    for name, share in figures.get("cases", {}).items():
        scaled[f"case: {name.replace('_', ' ')}"] = f"{share:.1%}: {CASES[name]}"
    print_table(title, main, solves, residuals, ratings, scaled)
    # So that nobody takes a figure of one kind of puzzles for one of another kind.
    if note is not None:
        print(wrapped(note))
    print("In brackets: the interval of 95 % (Wilson), in percent.")


def _wrong(figures: dict[str, Any]) -> str:
    """How many answers of converged solves are wrong."""
    wrong, converged = (
        figures["wrong_among_converged"], round(figures["converged"] * figures["puzzles"])
    )  # fmt: skip
    if not converged:
        return "0 of 0"
    return f"{wrong} of {converged}, {with_interval(wrong / converged, converged)}"


def _share(row: dict[str, Any], task: GridTask[Any]) -> str:
    plural = "" if row["puzzles"] == 1 else "s"
    share = with_interval(row["exact_accuracy"], row["puzzles"])
    return f"{share} of {row['puzzles']} {task.noun}{plural}"
