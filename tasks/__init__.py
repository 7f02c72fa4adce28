"""What we train and measure: one package per task, each run with `python -m tasks.<name>`."""

from pathlib import Path
from runpy import run_path

# By their paths: another `solvers` may hide ours, and ours loads torch, which workers do without.
_solvers = Path(__file__).parents[1] / "solvers"
run_path(str(_solvers / "siblings.py"))["check"](__file__, "solvers", "implicit", "models")
__version__ = run_path(str(_solvers / "version.py"))["__version__"]

__all__ = ["__version__"]
