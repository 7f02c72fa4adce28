"""Find y = f(y) for a batch of states: plain tensors, one verdict per sample, no gradients.

>>> import torch, solvers
>>> s = solvers.solve(lambda y, x: 0.5 * y + x, torch.zeros(2, 3), torch.ones(2, 3))
>>> s.converged.tolist(), s.value[0].round(decimals=3).tolist()
([True, True], [2.0, 2.0, 2.0])
"""

from solvers import adapters, testing
from solvers.aitken import Aitken
from solvers.anderson import Anderson
from solvers.anderson_safe import AndersonSafe
from solvers.anderson_type1 import AndersonType1
from solvers.autotune import autotune
from solvers.base import FixedPointSolver
from solvers.bicgstab import BiCGStab
from solvers.broyden import Broyden
from solvers.gmres import Gmres
from solvers.neumann import Neumann
from solvers.newton_krylov import NewtonKrylov
from solvers.picard import Picard
from solvers.promises import Promises
from solvers.registry import get_solver, linear_names, names, register, register_linear
from solvers.robust import Robust
from solvers.root import root
from solvers.solution import Result, Solution, SolveError
from solvers.solve import solve
from solvers.squarem import Squarem
from solvers.tolerance import ToleranceAdvice, cheapest_tolerance
from solvers.trace import Trace, contraction_rate, trace
from solvers.tuning import Tuning
from solvers.version import __version__ as __version__

__all__ = [
    "Aitken",
    "Anderson",
    "AndersonSafe",
    "AndersonType1",
    "BiCGStab",
    "Broyden",
    "FixedPointSolver",
    "Gmres",
    "Neumann",
    "NewtonKrylov",
    "Picard",
    "Promises",
    "Result",
    "Robust",
    "Solution",
    "SolveError",
    "Squarem",
    "ToleranceAdvice",
    "Trace",
    "Tuning",
    "adapters",
    "autotune",
    "cheapest_tolerance",
    "contraction_rate",
    "get_solver",
    "linear_names",
    "names",
    "register",
    "register_linear",
    "root",
    "solve",
    "testing",
    "trace",
]
