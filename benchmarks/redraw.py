"""Draw the pictures in `results/` anew, from the figures and logs that are committed beside them.

    PYTHONPATH=.:benchmarks python benchmarks/redraw.py

Those of a single solve are of a puzzle in the lists of the package, by the model beside it.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import bench_scaling
import report
import torch
from report import RESULTS
from torch.utils.flop_counter import FlopCounterMode

import tasks.maze
import tasks.sudoku
from implicit.diagnostics.style import BLUE, COLORS, house_style
from tasks.lm.data import VALIDATION_TOKENS
from tasks.lm.pictures import SUBPLOTS, plot_budgets
from tasks.maze.pictures import draw_maze
from tasks.puzzles.evaluate import trajectory
from tasks.puzzles.experiment import VALIDATION_PUZZLES
from tasks.puzzles.pictures import animate
from tasks.puzzles.report import SUBPLOTS as PUZZLE_CURVES
from tasks.puzzles.report import draw_scaling, draw_steps
from tasks.puzzles.solving import Solver
from tasks.reports.plots import Subplot, new_figure, plot_learning, save_png, title_of_run
from tasks.shipped import held_out

STEPS = {
    "sudoku/hard": "puzzle", "sudoku/standard": "puzzle", "maze/hard": "maze",
    "maze/mini": "maze", "queens/standard": "puzzle",
}  # fmt: skip
BUDGETS = ("lm/small", "lm/package", "lm/width-160-15-blocks")
LEARNING = ("lm/small", "lm/package")
LEARNING_PUZZLES = {
    "sudoku/extreme-deep": "puzzle", "sudoku/sixteen": "puzzle", "maze/unique": "maze",
}  # fmt: skip
# Of the mazes in the package: the one with the longest path.
MAZE = 37
# Attractors of one block that is solved: comparisons, and single runs.
COMPARED = (
    "mixers", "compare-1-block-90-seconds", "compare-1-block-1500-steps",
    "compare-1-block-6000-steps", "compare-3-blocks-1500-steps", "compare-7-blocks-90-seconds",
    "compare-7-blocks-1500-steps", "compare-7-blocks-6000-steps", "compare-15-blocks-1500-steps",
    "compare-11-blocks-8-minutes", "compare-11-blocks-446-steps",
)  # fmt: skip
ALONE = ("small", "package", "width-160-7-blocks", "width-160-15-blocks")
# What others report of Sudoku-Extreme in one pass: for each model its parameters that a pass uses,
# tokens, and pairs of passes and share solved. Sources: docs/attractor/extreme.md.
PUBLISHED = {
    "DEC-w192, 0.79 M": (0.79e6, 729, ((16, 0.959), (64, 0.9916), (128, 0.9942), (256, 0.996))),
    "TRM with attention, 7 M": (7e6, 97, ((336, 0.747),)),
    "HRM, 27 M": (13.5e6, 97, ((96, 0.55),)),
}


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def setting(result: dict[str, Any], name: str, section: str = "solve") -> Any:
    """An option of a run; in older files all stand on one level."""
    config = result["config"]
    return config.get(section, config).get(name)


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
    result = result_of(folder)
    measured, rtol = result["eval"], setting(result, "rtol")
    factor = measured["loss"] / measured["bits_per_byte"]
    rows = rows_of(folder)
    for row in rows:
        if "test_loss" not in row and "test_bits" in row:
            row["test_loss"] = factor * row["test_bits"]
    first, *others = SUBPLOTS
    curves = {**first.curves, "test_loss": f"held-out: bits per byte, times {factor:.2f}"}
    subplots = Subplot(first.label, curves), *others
    above = title(folder, rows, f"{VALIDATION_TOKENS:,} tokens")
    return plot_learning(rows, folder / "learning.png", subplots, rtol=rtol, title=above)


def learning_puzzles(folder: Path, noun: str) -> Path:
    """Loss, accuracy and residuals in training."""
    result = result_of(folder)
    segments, rtol = setting(result, "segments", "train"), setting(result, "rtol")
    rows, path = rows_of(folder), folder / "learning.png"
    count = min(VALIDATION_PUZZLES, result["eval"]["puzzles"])
    above = title(folder, rows, f"{count} {noun}s")
    return plot_learning(rows, path, PUZZLE_CURVES, segments, rtol, above)


def title(folder: Path, rows: list[dict[str, Any]], validated: str) -> str:
    """Which run it is, from its folder, its result and its log."""
    seed = setting(result_of(folder), "seed", "train")
    return title_of_run(folder.relative_to(RESULTS).as_posix(), seed, rows[-1]["step"], validated)


def multiply_adds(model: Any) -> tuple[float, float]:
    """Multiply-adds of the proposal of a 9x9 board, and of one evaluation of the map."""
    x = torch.zeros(1, 81, dtype=torch.long)
    with torch.no_grad():
        with FlopCounterMode(display=False) as proposal:
            y0, arguments = model.problem(x)
        with FlopCounterMode(display=False) as update:
            model.solving.module(y0, *arguments)
    return proposal.get_total_flops() / 2, update.get_total_flops() / 2


@house_style()
def arithmetic(folder: Path) -> Path:
    """Share of Sudoku-Extreme solved against multiply-adds for each puzzle."""
    measured = result_of(folder)["eval"]
    model = tasks.sudoku.load("extreme", device="cpu").model
    once, update = multiply_adds(model)
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    rows = [row for row in measured["curve"] if row["exact_accuracy"]]
    label = f"ours, {sum(p.numel() for p in model.parameters()) / 1e6:.3f} M (counted)"
    for name, color, work, solved in [
        (label, BLUE, [once + row["steps"] * update for row in rows],
         [row["exact_accuracy"] for row in rows]),
        *((name, color, [parameters * tokens * passes for passes, _ in pairs],
           [share for _, share in pairs])
          for (name, (parameters, tokens, pairs)), color in zip(
              PUBLISHED.items(), itertools.cycle(COLORS[1:]), strict=False)),
    ]:  # fmt: skip
        axes.semilogx(work, [100 * share for share in solved], "o-", color=color, label=name)
    axes.set(xlabel="multiply-adds for a puzzle", ylabel="solved, %", ylim=(0, 102))
    axes.set_title("Others' shares are of the published test set; their arithmetic is estimated")
    axes.legend(loc="lower right")
    return save_png(figure, folder / "arithmetic.png")


def internalised() -> list[dict[str, Any]]:
    """Of each run: width, blocks that propose, tokens per parameter, and what is lost at T=0."""
    found = []
    for name in COMPARED:
        result = result_of(RESULTS / "lm" / name)
        (row,) = (row for row in result["rows"] if row["model"] == "attractor")
        per_step = 16 * (256 if row["width"] == 128 else 64)
        blocks = int(name.split("-")[1]) if name.startswith("compare") else 1
        found.append({
            "width": row["width"], "blocks": blocks,
            "tokens": row["steps"] * per_step / row["parameters"],
            "lost": row["proposal_loss_over_converged"] - 1,
        })  # fmt: skip
    for name in ALONE:
        result = result_of(RESULTS / "lm" / name)
        config = result["config"]
        shape = {**config, **config["model"]} if isinstance(config["model"], dict) else config
        rows = result["eval"]["by_budget"]
        found.append({
            "width": shape["width"], "blocks": shape["backbone_blocks"],
            "tokens": result["train_tokens"] / result["parameters"],
            "lost": rows[0]["loss"] / rows[-1]["loss"] - 1,
        })  # fmt: skip
    return found


@house_style()
def internalisation(folder: Path) -> Path:
    """What an Attractor loses without its solver, against its tokens per parameter."""
    found = internalised()
    (folder / "result.json").write_text(json.dumps({"rows": found}) + "\n")
    figure = new_figure(7, 4)
    axes = figure.subplots()
    widths = sorted({run["width"] for run in found})
    blocks = sorted({run["blocks"] for run in found})
    for run in found:
        axes.loglog(
            run["tokens"], 100 * run["lost"], "os^"[widths.index(run["width"])],
            color=COLORS[blocks.index(run["blocks"])], markersize=7,
        )  # fmt: skip
    for count, color in zip(blocks, COLORS, strict=False):
        axes.plot([], [], "o", color=color, label=f"{count} + 1 blocks")
    for width, marker in zip(widths, "os^", strict=True):
        axes.plot([], [], marker, color="0.5", label=f"width {width}")
    axes.set(xlabel="tokens of training per parameter", ylabel="loss added without the solver, %")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(ncols=2)
    return save_png(figure, folder / "picture.png")


def followed(model: Solver, row: int) -> tuple[list[Any], Any]:
    """The frames of the solve of one puzzle from the list beside a model, and its picture."""
    beside, config = held_out(model.path), model.config
    assert beside is not None
    puzzle = model.task.read(beside, config)[row]
    x, classes = (rows[0] for rows in model.task.encode([puzzle], config))
    symbols = [symbol + model.task.first_symbol for symbol in classes.tolist()]
    frames = trajectory(model.model, x, config.solve.eval_max_steps)
    return frames, model.task.picture(x.tolist(), symbols)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def main() -> None:
    """Draw all of them."""
    for name, noun in STEPS.items():
        print(steps(RESULTS / name, noun))
    breadth = RESULTS / "sudoku/extreme-breadth"
    draw_scaling(result_of(breadth)["eval"], breadth)
    print(breadth)
    depth = RESULTS / "sudoku/extreme-depth"
    measured = result_of(depth)["eval"]
    curve, solver = measured["depth_curve"], ("extreme, picard", setting(result_of(depth), "rtol"))
    print(draw_steps(curve, depth / "depth.png", "puzzle", measured["puzzles"], solver))
    for name in BUDGETS:
        result = result_of(RESULTS / name)
        rows = result["eval"]["by_budget"]
        print(plot_budgets(rows, RESULTS / name / "budgets.png", setting(result, "rtol")))
    for name in LEARNING:
        print(learning(RESULTS / name))
    for name, noun in LEARNING_PUZZLES.items():
        print(learning_puzzles(RESULTS / name, noun))
    maze = followed(tasks.maze.load("hard", device="cpu"), MAZE)
    print(draw_maze(*maze, RESULTS / "maze/hard/maze.png"))
    board = tasks.sudoku.load("extreme", device="cpu")
    moving = RESULTS / "sudoku/extreme-deep/convergence.gif"
    print(animate(*followed(board, 0), moving, board.config.solve.rtol))
    print(arithmetic(RESULTS / "sudoku/extreme-deep"))
    print(internalisation(RESULTS / "lm/internalisation"))
    report.dots("peers", result_of(RESULTS / "bench/peers"))
    bench_scaling.plot(result_of(RESULTS / "bench/scaling")["float32"]["rows"])


if __name__ == "__main__":
    main()
