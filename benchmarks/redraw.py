"""Draw the pictures in `results/` anew, from the figures and logs that are committed beside them.

    PYTHONPATH=.:benchmarks python benchmarks/redraw.py

Pictures whose data is not committed stay as they are: those that show a single solve, and
`results/sudoku/extreme-breadth/depth.png`.
"""

import json
from pathlib import Path
from typing import Any

import bench_scaling
from report import RESULTS

from tasks.lm.pictures import SUBPLOTS, plot_budgets
from tasks.puzzles.report import SUBPLOTS as PUZZLE_CURVES
from tasks.puzzles.report import draw_scaling, draw_steps
from tasks.reports.plots import Subplot, plot_learning

STEPS = {
    "sudoku/hard": "puzzle", "sudoku/standard": "puzzle", "maze/hard": "maze",
    "maze/mini": "maze", "queens/standard": "puzzle",
}  # fmt: skip
BUDGETS = ("lm/small", "lm/package", "lm/width-160-15-blocks")
LEARNING = ("lm/small", "lm/package")
LEARNING_PUZZLES = ("sudoku/extreme",)


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def setting(result: dict[str, Any], name: str) -> Any:
    """An option of a run; in older files all stand on one level."""
    config = result["config"]
    return config.get("solve", config).get(name)


def steps(folder: Path, noun: str) -> Path:
    """Accuracy and residual by solver steps."""
    result = result_of(folder)
    name = setting(result, "eval_solver") or setting(result, "solver")
    solver = (f"{result['preset']} run, {name}", setting(result, "rtol"))
    measured = result["eval"]
    return draw_steps(measured["curve"], folder / "steps.png", noun, measured["puzzles"], solver)


def learning(folder: Path) -> Path:
    """Losses in training; older logs have the held-out one in bits per byte alone.

    The factor between the units is that of the whole held-out text, of which a validation in
    training reads the first part.
    """
    measured = result_of(folder)["eval"]
    factor = measured["loss"] / measured["bits_per_byte"]
    rows = rows_of(folder)
    for row in rows:
        if "test_loss" not in row and "test_bits" in row:
            row["test_loss"] = factor * row["test_bits"]
    first, *others = SUBPLOTS
    curves = {**first.curves, "test_loss": f"held-out: bits per byte, times {factor:.2f}"}
    return plot_learning(rows, folder / "learning.png", (Subplot(first.label, curves), *others))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def main() -> None:
    """Draw all of them."""
    for name, noun in STEPS.items():
        print(steps(RESULTS / name, noun))
    breadth = RESULTS / "sudoku/extreme-breadth"
    draw_scaling(result_of(breadth)["eval"], breadth)
    print(breadth)
    for name in BUDGETS:
        result = result_of(RESULTS / name)
        rows = result["eval"]["by_budget"]
        print(plot_budgets(rows, RESULTS / name / "budgets.png", setting(result, "rtol")))
    for name in LEARNING:
        print(learning(RESULTS / name))
    for name in LEARNING_PUZZLES:
        folder = RESULTS / name
        print(plot_learning(rows_of(folder), folder / "learning.png", PUZZLE_CURVES))
    bench_scaling.plot(result_of(RESULTS / "bench/scaling")["float32"]["rows"])


if __name__ == "__main__":
    main()
