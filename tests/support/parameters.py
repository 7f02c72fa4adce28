"""What tests are run over."""

from typing import Any

import pytest

import solvers


def slow(*values: Any, unless: bool = False) -> Any:
    """Values of a case that `make test` leaves to `make test-slow`."""
    return pytest.param(*values, marks=() if unless else pytest.mark.slow)


def some(values: list[Any], *fast: Any) -> list[Any]:
    """All values, of which `make test` runs the fast ones."""
    return [slow(value, unless=value in fast) for value in values]


def long(*values: Any, unless: bool = False) -> Any:
    """Values of a case that `make test-slow` leaves out as well, unless it is the one given."""
    marks = pytest.mark.slow if unless else (pytest.mark.slow, pytest.mark.long)
    return pytest.param(*values, marks=marks)


# The peers' own solvers are slow, and two problems and first derivatives have tests in
# tests/solvers/test_contrib.py.
PEERS_WHEN_SLOW = [slow(name) if "." in name else name for name in solvers.names()]
