"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# `make test` tries a few examples of each property, `--hypothesis-profile thorough` many.
settings.register_profile("few", max_examples=6, deadline=None)
settings.register_profile("thorough", max_examples=100, deadline=None)
settings.load_profile("few")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data files, which are no part of the project."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ATTRACTOR_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent, and ATTRACTOR_SHARED_DATA names no folder")
    return folder
