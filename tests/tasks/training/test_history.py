"""The rows of a log: each has the mean of equally many steps, also where a validation makes one."""

from statistics import fmean
from typing import Any, cast

from tasks.training.history import LOG_EVERY, History


class Quiet:
    def read(self, row: dict[str, float]) -> None:
        return None


def test_a_validation_does_not_cut_the_window_of_a_row() -> None:
    """Losses that alternate, as they do with segments, give rows that do not."""
    history = History(lambda row: row["test_exact"], cast(Any, Quiet()))
    for step in range(1, 41):
        metrics = {"loss": float(step % 2)} | ({"test_exact": 0.5} if step == 23 else {})
        row = history.add(metrics, step, 60.0 * step)
        assert history.is_row(step) == (history.rows[-1] is row)
    assert [row["step"] for row in history.rows] == [1, 11, 21, 23, 33]
    assert [row["loss"] for row in history.rows[1:]] == [0.5] * 4
    assert [row.get("test_exact") for row in history.rows] == [None, None, None, 0.5, None]
    assert history.last_validation == {"test_exact": 0.5}
    assert len(history.window) == LOG_EVERY
    assert fmean(step["loss"] for step in history.window) == 0.5


def test_a_restored_history_makes_the_rows_of_one_that_was_not_interrupted() -> None:
    whole, first, second = (History(lambda row: 0.0, cast(Any, Quiet())) for _ in range(3))
    for step in range(1, 31):
        metrics = {"loss": float(step)}
        whole.add(metrics, step, 1.0)
        if step == 16:
            second.restore(list(first.rows), list(first.window))
        (first if step < 16 else second).add(metrics, step, 1.0)
    assert second.rows == whole.rows
