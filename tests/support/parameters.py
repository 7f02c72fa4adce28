"""What tests are run over."""

import pytest

import solvers

# The peers' own solvers are slow, and two problems and first derivatives have tests in
# tests/solvers/test_contrib.py.
PEERS_WHEN_SLOW = [
    pytest.param(name, marks=pytest.mark.slow) if "." in name else name for name in solvers.names()
]
