"""Plots: whole files or none, whatever the rows hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from tasks.puzzles.report import SUBPLOTS
from tasks.reports.plots import (
    Subplot,
    plot_breadth,
    plot_calibration,
    plot_learning,
    plot_steps,
    save,
    title_of_run,
)

NAN = float("nan")
FULL = {"loss": 1.0, "cell_accuracy": 0.5, "exact_accuracy": 0.1, "residual": 0.2}


def check_png(path: Path) -> None:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(path) as image:
        image.load()
        assert image.width > 500
        assert image.info["dpi"][0] == pytest.approx(150, abs=0.1)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "history",
    [
        [{"minutes": i / 10, **FULL, **({"test_exact": 0.1} if i % 3 else {})} for i in range(9)],
        [{"minutes": 0.1, **FULL}],
        [{"minutes": 0.1, "loss": 1.0}, {"minutes": 0.2, "loss": 0.5, "cell_accuracy": 1.0}],
        [{"minutes": 0.1, "loss": 0.0, "residual": NAN}],
        [],
    ],
    ids=["full", "one row", "no residual", "nothing above 0", "empty"],
)
def test_learning_is_drawn_from_any_rows(history: list[dict[str, float]], tmp_path: Path) -> None:
    path = tmp_path / "learning.png"
    assert plot_learning(history, path, SUBPLOTS) == path
    check_png(path)


@pytest.mark.parametrize(
    ("steps", "exact", "residual"),
    [
        ([1, 2, 4, 8], [0.0, 0.2, 0.9, 1.0], [0.5, 0.1, 1e-3, 1e-4]),
        ([0, 1, 2], [0.0, 0.2, 0.9], [NAN, 0.1, 0.0]),
        ([4], [1.0], [0.0]),
    ],
    ids=["powers of two", "from step 0", "one exact solve"],
)
def test_steps_are_drawn(
    steps: list[int], exact: list[float], residual: list[float], tmp_path: Path
) -> None:
    path = tmp_path / "steps.png"
    assert plot_steps(steps, exact, residual, path, "A title", 300, 1e-5) == path
    check_png(path)


def test_what_several_starts_bring_is_drawn(tmp_path: Path) -> None:
    rows = [{"breadth": 2**k, "residual": 0.7 + k / 20, "vote": 0.7, "valid": 0.7} for k in (0, 1)]
    path = tmp_path / "breadth.png"
    assert plot_breadth(rows, path, 250) == path
    check_png(path)


def test_accuracy_by_residual_is_drawn(tmp_path: Path) -> None:
    rows = [
        {"residual": f"1e-0{k} to 1e-0{k - 1}", "puzzles": k, "exact_accuracy": k / 6}
        for k in (6, 3)
    ]
    path = tmp_path / "calibration.png"
    assert plot_calibration(rows, path, "A title") == path
    check_png(path)


@pytest.mark.parametrize(("minutes", "unit"), [(0.005, "seconds"), (5.0, "minutes")])
def test_axes_have_a_unit_and_a_range_that_suit(
    minutes: float, unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 3.0000 to 3.0030 are a flat line, and 0.005 minutes are seconds."""
    drawn: list[Any] = []
    monkeypatch.setattr(
        "tasks.reports.plots.save_png", lambda figure, path: drawn.append(figure) or path
    )
    rows = [{"minutes": minutes * k, "solver_steps": 3 + k / 1000} for k in range(4)]
    plot_learning(rows, tmp_path / "a.png", [Subplot("steps", {"solver_steps": "training"})])
    (axes,) = drawn[0].axes
    low, high = axes.get_ylim()
    assert high - low > 0.5
    assert axes.get_xlabel() == f"training time ({unit})"


def test_drawing_leaves_matplotlib_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    plot_learning([{"minutes": 0.1, **FULL}], tmp_path / "learning.png", SUBPLOTS)
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plot_learning([{"minutes": 0.1, **FULL}], path, SUBPLOTS),
        lambda path: plot_steps([1, 2], [0.1, 0.2], [0.1, 0.2], path, "", 9),
    ],
    ids=["learning", "steps"],
)
def test_unwritable_folder(draw: Callable[[Path], Path], tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    missing, inside = tmp_path / "missing" / "a.png", blocker / "a.png"
    with pytest.raises(FileNotFoundError, match=r"missing/a\.png cannot be written .*exists"):
        draw(missing)
    with pytest.raises(NotADirectoryError, match=r"file/a\.png cannot be written"):
        draw(inside)
    assert list(tmp_path.iterdir()) == [blocker]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failed_write_keeps_the_old_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        save(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is drawn, instead of files."""
    drawn: list[Any] = []
    monkeypatch.setattr("tasks.reports.plots.save_png", lambda figure, path: drawn.append(figure))
    return drawn


@pytest.mark.parametrize("log", [False, True])
def test_long_curves_are_smoothed_over_whole_rounds_of_segments(
    log: bool, figures: list[Any]
) -> None:
    """A loss that only depends on the segment is flat, whatever the number of rows."""
    loss = [Subplot("loss", {"loss": "training batch"}, log=log)]
    for count in (70, 100, 500):
        rows = [{"minutes": i / 10, "loss": 0.5 + i % 8} for i in range(count)]
        plot_learning(rows, Path("learning.png"), loss, segments=8)
    short, *long = (figure.axes[0].lines for figure in figures)
    assert [max(line.get_ydata()) for line in short] == [7.5]
    level = np.exp(np.log(np.arange(8) + 0.5).mean()) if log else 4.0
    for raw, smooth in long:
        assert max(raw.get_ydata()) == 7.5
        assert raw.get_alpha() < 0.5
        assert smooth.get_ydata() == pytest.approx(level)
        # As far from either end as half of a window.
        start, end = (line.get_xdata()[[0, -1]] for line in (raw, smooth))
        assert end[0] - start[0] == pytest.approx(start[1] - end[1])


def test_a_picture_of_training_says_which_run_it_is(figures: list[Any]) -> None:
    rows = [{"minutes": 0.0, "loss": 2.0}, {"minutes": 1.0, "loss": 1.0}]
    title = title_of_run("sudoku tiny", seed=7, steps=1234, validated="100 puzzles")
    plot_learning(rows, Path("a.png"), [Subplot("loss", {"loss": "batch"})], title=title)
    shown = figures[0].axes[0].get_title()
    assert shown == "sudoku tiny, seed 7: 1,234 training steps, validated on 100 puzzles"


def test_segments_and_held_out_residuals_are_drawn_where_the_log_has_them(
    figures: list[Any],
) -> None:
    new = {"first_segment_loss": 2.0, "last_segment_loss": 0.1}
    looked = {"test_residual": 1e-4, "test_residual_90": 1e-2}
    rows = [{"minutes": i, **FULL, **new, **looked} for i in range(4)]
    rows[0]["last_segment_loss"] = NAN
    for history in (rows, [{"minutes": 1, **FULL}]):
        plot_learning(history, Path("learning.png"), SUBPLOTS, segments=8, rtol=1e-5)
    (loss, *_, residual), older = (figure.axes for figure in figures)
    curves = {line.get_label(): len(line.get_ydata()) for line in loss.lines}
    assert list(curves.values()) == [4, 4, 3]
    *measured, tolerance = residual.lines
    assert [line.get_ydata()[0] for line in measured] == [1e-4, 1e-2]
    assert tolerance.get_ydata()[0] == 1e-5
    assert residual.get_yscale() == "log"
    # An older log has neither, and no empty subplot.
    assert len(older) == 3
    assert [len(axes.lines) for axes in older] == [1, 2, 1]
