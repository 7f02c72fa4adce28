"""What tests are run over."""

import pytest

import solvers

# The peers' own solvers are slow, and their first derivatives have tests in test_adapters.py.
PEERS_WHEN_SLOW = [
    pytest.param(name, marks=pytest.mark.slow) if "." in name else name for name in solvers.names()
]
