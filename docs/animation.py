"""The moving picture on the first page: one Sudoku, and the residual of each puzzle of a batch.

Run as `python -m docs.animation` from the root of the repository; it writes `docs/solve.gif`.
"""

import math
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import tasks.sudoku
from tasks import shipped
from tasks.puzzles.evaluate import trajectory
from tasks.puzzles.pictures import image_of, share_palette
from tasks.reports.plots import BLUE, ORANGE, draw_tolerance, new_figure

OUT = Path(__file__).with_name("solve.gif")
# Of the puzzles that come with the model; and updates of each, at most.
PUZZLES, BUDGET = 48, 128
DPI, FRAME_MS, HOLD_MS = 100, 130, 4000


def main() -> None:
    """Solve, and draw every second moment."""
    model = tasks.sudoku.load("extreme", device="cpu")
    rtol = model.config.solve.rtol
    beside = shipped.held_out(model.path)
    assert beside is not None
    puzzles = model.task.read(beside, model.config)[:PUZZLES]
    x, classes = model.task.encode(puzzles, model.config)
    solves = [trajectory(model.model, row, BUDGET) for row in x]
    length = [len(frames) for frames in solves]
    failed = [i for i, frames in enumerate(solves) if frames[-1][1] > 10 * rtol]
    solved = [i for i in range(PUZZLES) if i not in failed]
    # One that takes longer than most.
    shown = sorted(solved, key=lambda i: length[i])[3 * len(solved) // 4]
    picture = model.task.picture(x[shown].tolist(), (classes[shown] + 1).tolist())
    images = []
    for step in [*range(0, 60, 2), *range(60, BUDGET + 1, 4)]:
        figure = new_figure(7.2, 3.7)
        canvas = FigureCanvasAgg(figure)
        board, curves = figure.subplots(1, 2, width_ratios=(1, 1.05))
        board.axis("off")
        picture.draw(board, solves[shown][min(step, length[shown] - 1)])
        for i in (*solved, *failed, shown):
            frames = solves[i][: step + 1]
            color = BLUE if i == shown else ORANGE if i in failed else "0.7"
            values = [frame[1] for frame in frames]
            width = 2.0 if i == shown else 1.0
            curves.semilogy([frame[0] for frame in frames], values, color=color, linewidth=width)
            if length[i] <= step:
                curves.plot(frames[-1][0], values[-1], "o", color=color, markersize=3 + width)
        draw_tolerance(curves, rtol)
        curves.set(xlim=(0, BUDGET), ylim=(rtol / 4, 3), xlabel="solver step")
        curves.grid(True, color="0.92")
        curves.spines[["top", "right"]].set_visible(False)
        done = sum(length[i] <= step for i in solved)
        curves.set_title(
            f"relative residual of each puzzle\n{done} of {PUZZLES} converged", fontsize=9
        )
        canvas.draw()
        images.append(image_of(canvas))
    first, *others = share_palette(images)
    durations = [FRAME_MS] * len(others) + [HOLD_MS]
    first.save(OUT, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size:,} bytes; {len(failed)} of {PUZZLES} did not converge")
    assert math.isfinite(solves[shown][-1][1])


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
