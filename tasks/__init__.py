"""What we train and measure: one package per task, each run with `python -m tasks.<name>`."""

from pathlib import Path
from runpy import run_path

# By its path, since another `solvers` may hide ours.
run_path(str(Path(__file__).parents[1] / "solvers" / "siblings.py"))["check"](
    __file__, "solvers", "implicit", "models"
)

from solvers.version import __version__

__all__ = ["__version__"]
