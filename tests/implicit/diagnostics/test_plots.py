"""Pictures of solves: what is drawn is what was traced."""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import solvers
from implicit.diagnostics.plots import (
    convergence_figure,
    plot_convergence,
    plot_trajectory,
    trajectory_figure,
)
from implicit.diagnostics.style import COLORS, house_style
from solvers.testing.problems import PROBLEMS, linear, rotation
from solvers.tools.trace import Trace, trace


def traces(**options: Any) -> dict[str, Trace]:
    p = linear(0.9, normal=False)
    return {
        name: trace(p.f, p.y0, *p.args, solver=name, max_steps=30, **options)
        for name in ("anderson", "newton_krylov", "picard")
    }


def drawn(figure: Figure, panel: int) -> list[tuple[list[float], list[float]]]:
    return [tuple(map(list, line.get_data())) for line in figure.axes[panel].lines]  # type: ignore[misc]


def check_png(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        assert image.width > 500
        assert image.info["dpi"][0] == pytest.approx(150, abs=0.1)


def test_convergence_draws_worst_and_median_against_evaluations_and_time() -> None:
    seen = traces()
    figure = convergence_figure(seen)
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log"]
    for panel in (0, 1):
        lines = drawn(figure, panel)
        assert len(lines) == 6
        for i, one in enumerate(seen.values()):
            count = one.num_evals.tolist()
            x = [count, (1000 * one.seconds).tolist()][panel]
            assert lines[2 * i] == (x, one.residual.amax(1).tolist())
            assert lines[2 * i + 1] == (x, one.residual.median(1).values.tolist())


def test_legend_names_each_solver_once_and_says_what_failed() -> None:
    (legend,) = convergence_figure(traces()).legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [
        "anderson", "newton_krylov", "picard (17 of 17 unconverged)", "worst sample",
        "median sample",
    ]  # fmt: skip
    assert [line.get_linestyle() for line in legend.get_lines()] == ["-", "-", "-", "-", "--"]


def test_many_solvers_are_told_apart() -> None:
    one = traces()["anderson"]
    figure = convergence_figure({f"solver {i}": one for i in range(20)})
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == 20


def test_samples_that_are_not_finite_count_as_infinite_and_leave_gaps() -> None:
    x = torch.tensor([[1.0], [1.0], [math.nan]])
    seen = trace(lambda y, x: 0.5 * y + x, 0 * x.nan_to_num(), x, solver="picard", max_steps=4)
    (_, worst), (_, median) = drawn(convergence_figure({"picard": seen}), 0)
    assert np.isnan(worst).all()
    assert median == [1, 0.5, 0.25, 0.125, 0.0625]


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["exact start", "one step"])
def test_exact_solves_can_be_drawn(value: float, tmp_path: Path) -> None:
    seen = trace(lambda y: torch.full_like(y, value), torch.zeros(2, 2), batch_dims=0)
    plot_convergence({"anderson": seen}, tmp_path / "a.png")
    check_png(tmp_path / "a.png")


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="`traces` is empty"):
        convergence_figure({})
    empty = trace(lambda y: y, torch.zeros(0, 2))
    with pytest.raises(ValueError, match="trace of 'mine' holds no evaluation"):
        convergence_figure({"mine": empty})


def trajectory(p=None, sample: int = 3, **options) -> tuple[Trace, Figure]:  # type: ignore[no-untyped-def]
    p = p or linear(0.9, normal=False)
    seen = trace(p.f, p.y0, *p.args, max_steps=30, keep_states=True, **options)
    return seen, trajectory_figure(seen, sample)


@pytest.mark.parametrize("solver", ["anderson", "picard"])
def test_trajectory_is_the_projection_on_principal_components(solver: str) -> None:
    seen, figure = trajectory(solver=solver)
    steps = int(seen.solution.num_steps[3])
    points = torch.stack([state[3] for state in seen.states])[: steps + 1].numpy()
    path, start, end = (np.array(line.get_data()).T for line in figure.axes[0].lines)
    centred = points - points.mean(0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    axes, shares = axes[:, ::-1][:, :2], values[::-1] / values.sum()
    true = centred @ axes
    signs = np.sign((true * path).sum(0))
    assert np.allclose(path, signs * true, atol=1e-9)
    assert np.array_equal(start[0], path[0])
    assert np.array_equal(end[0], path[-1])
    labels = [figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()]
    assert labels == [f"component {i + 1} ({100 * shares[i]:.1f} % of variance)" for i in range(2)]
    assert figure.axes[1].get_ylabel() == "evaluation"
    colors = np.asarray(figure.axes[0].collections[0].get_array())
    assert colors.tolist() == list(range(1, len(path) + 1))


def test_path_ends_where_the_sample_stopped() -> None:
    """The slow sample keeps the solve going; frozen points would weigh in the components."""
    rate = torch.tensor([[0.1], [0.9]])
    seen = trace(
        lambda y, rate: rate * y, torch.ones(2, 2), rate, solver=solvers.Picard(atol=1e-3),
        max_steps=100, keep_states=True,
    )  # fmt: skip
    for sample in (0, 1):
        (x, _), *_ = drawn(trajectory_figure(seen, sample), 0)
        assert len(x) == seen.solution.num_steps[sample] + 1


def test_title_says_how_the_sample_ended() -> None:
    seen, figure = trajectory(solver="picard")
    assert figure.axes[0].get_title() == "sample 3: max steps after 30 steps"
    seen, figure = trajectory(solver="anderson")
    steps = int(seen.solution.num_steps[3])
    assert figure.axes[0].get_title() == f"sample 3: converged after {steps} steps"


def test_plane_states_lose_nothing() -> None:
    seen, figure = trajectory(rotation(0.9), solver="picard")
    path = np.array(figure.axes[0].lines[0].get_data()).T
    true = torch.stack([state[3] for state in seen.states]).numpy()
    lengths = [np.linalg.norm(np.diff(points, axis=0), axis=1) for points in (path, true)]
    assert np.allclose(*lengths)


@pytest.mark.parametrize("name", ["cosine", "tree", "doubling"])
def test_states_of_any_shape_can_be_drawn(name: str, tmp_path: Path) -> None:
    p = next(p for p in PROBLEMS if p.name == name)
    seen = trace(p.f, p.y0, *p.args, max_steps=30, keep_states=True)
    assert plot_trajectory(seen, tmp_path / "a.png", sample=-1) == tmp_path / "a.png"
    check_png(tmp_path / "a.png")


def test_a_path_of_one_point_and_points_that_are_not_finite(tmp_path: Path) -> None:
    still = trace(lambda y: y, torch.ones(1, 3), keep_states=True)
    plot_trajectory(still, tmp_path / "a.png")
    assert trajectory_figure(still).axes[0].get_xlabel() == "component 1 (0.0 % of variance)"
    solver = solvers.Picard()
    spoiled = trace(
        lambda y: torch.where(y > 2, math.nan, y + 1), torch.zeros(1, 2), solver=solver,
        keep_states=True,
    )  # fmt: skip
    (x, _), *_ = drawn(trajectory_figure(spoiled), 0)
    assert len(x) >= 4
    assert np.isfinite(x).all()


def test_tokens_are_counted_row_by_row() -> None:
    y0 = torch.arange(12.0).view(2, 3, 2)

    def f(y: Tensor) -> Tensor:
        return 0.5 * y

    seen = trace(f, y0, batch_dims=2, keep_states=True, max_steps=3, solver="picard")
    (x, _), *_ = drawn(trajectory_figure(seen, sample=4), 0)
    states = torch.stack([state[1, 1] for state in seen.states])
    assert np.allclose(np.abs(np.diff(x)), states.diff(dim=0).norm(dim=1))


def test_a_trace_without_the_sample_is_refused() -> None:
    p = linear(0.9, normal=True)
    with pytest.raises(ValueError, match="`keep_states=True`"):
        trajectory_figure(trace(p.f, p.y0, *p.args))
    with pytest.raises(IndexError, match="`sample` is 17, but the trace has 17 samples"):
        trajectory(sample=17)
    nowhere = trace(lambda y: y, torch.full((1, 2), math.nan), keep_states=True)
    with pytest.raises(ValueError, match="Sample 0 has no finite point"):
        trajectory_figure(nowhere)


def test_files_are_written_and_matplotlib_is_left_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    seen = traces(keep_states=True)
    assert plot_convergence(seen, str(tmp_path / "a.png")) == tmp_path / "a.png"
    plot_trajectory(seen["anderson"], tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        check_png(tmp_path / name)
    assert dict(mpl.rcParams) == before
    with pytest.raises(FileNotFoundError):
        plot_convergence(seen, tmp_path / "missing" / "a.png")


def test_colours_are_those_of_the_style() -> None:
    with house_style():
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == COLORS
