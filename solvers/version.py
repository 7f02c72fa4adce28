"""The version of all four packages; `pyproject.toml` reads it here."""

__version__ = "0.1.0"
