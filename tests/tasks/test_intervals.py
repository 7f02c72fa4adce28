"""Intervals of shares, against their definition."""

import math

import pytest

from tasks.output import DEVIATIONS, wilson, with_interval


@pytest.mark.parametrize(("share", "count"), [(0.741, 1000), (0.02, 50), (0.5, 3), (0.997, 300)])
def test_an_interval_ends_where_the_share_is_just_not_refuted(share: float, count: int) -> None:
    for end in wilson(share, count):
        assert abs(share - end) == pytest.approx(
            DEVIATIONS * math.sqrt(end * (1 - end) / count), rel=1e-9
        )


def test_all_and_none_have_a_width() -> None:
    assert wilson(1.0, 95) == (pytest.approx(0.9611, abs=1e-4), pytest.approx(1.0))
    assert wilson(0.0, 95) == (pytest.approx(0.0), pytest.approx(0.0389, abs=1e-4))
    assert wilson(0.0, 0) == (0.0, 1.0)


def test_it_is_written_beside_the_share() -> None:
    assert with_interval(0.741, 1000) == "74.1% (71.3 to 76.7)"
