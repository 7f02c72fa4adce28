"""The picture of `make bench`, from the figures that are committed: nothing is measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import report
from matplotlib.legend import Legend
from matplotlib.text import Text


def test_the_peers_fill_every_panel_and_have_a_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((report.RESULTS / "bench/peers/result.json").read_text())
    figures: list[Any] = []
    monkeypatch.setenv("BENCH_RESULTS", str(tmp_path))
    monkeypatch.setattr(report.plt, "close", figures.append)
    report.dots("peers", content)
    monkeypatch.undo()
    (figure,) = figures
    report.plt.close(figure)
    assert (tmp_path / "peers/picture.png").stat().st_size > 0
    assert len(figure.axes) == len(content)
    letters = [axes.get_title().split("\n")[0] for axes in figure.axes]
    assert letters == ["(a)", "(b, float32)", "(b, float64)", "(c)", "(d)"]
    written = [t.get_fontsize() for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
    assert min(written) >= 12  # still legible at half the width
    for axes, part in zip(figure.axes, content.values(), strict=True):
        # A vertical line at 1, and a mark for each solver, with an answer or without.
        assert len(axes.lines) == 1 + len(part["rows"])
        hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
        failed = [r for r in part["rows"] if r["wall_ms"] is not None and not r["converged"]]
        assert len(hollow) == len(failed)
        unit = next(row["wall_ms"] for row in part["rows"] if row["solver"] == "anderson")
        numbers = [float(text.get_text()) for text in axes.texts]
        ratios = [row["wall_ms"] / unit for row in part["rows"] if row["wall_ms"] is not None]
        assert numbers == pytest.approx(ratios, rel=0.03)  # two decimals of 0.2 and more
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    places = figure.axes[0].get_yticks().tolist()
    assert places == sorted(places, reverse=True)
    # Plain torchdeq.anderson solves three of five problems, in 2.66 to 25.8 times our time.
    assert names.index("anderson") < names.index("torchdeq anderson") < len(names) - 1
    assert names[-1] == "scipy broyden1"  # solves one
    (legend,) = figure.findobj(Legend)
    named = [text.get_text() for text in legend.get_texts()]
    assert named[:5] == ["ours", "torchdeq", "scipy", "jaxopt", "optimistix"]
    assert len(named) == 7
