"""Find y = f(y) for a batch of states: plain tensors, one verdict per sample, no gradients.

>>> import torch, solvers
>>> s = solvers.solve(lambda y, x: 0.5 * y + x, torch.zeros(2, 3), torch.ones(2, 3))
>>> s.converged.tolist(), s.value[0].round(decimals=3).tolist()
([True, True], [2.0, 2.0, 2.0])
"""

from solvers import contrib as adapters
from solvers import testing
from solvers.base import FixedPointSolver
from solvers.methods.aitken import Aitken
from solvers.methods.anderson import Anderson
from solvers.methods.anderson_safe import AndersonSafe
from solvers.methods.anderson_type1 import AndersonType1
from solvers.methods.broyden import Broyden
from solvers.methods.linear.bicgstab import BiCGStab
from solvers.methods.linear.gmres import Gmres
from solvers.methods.linear.neumann import Neumann
from solvers.methods.newton_krylov import NewtonKrylov
from solvers.methods.picard import Picard
from solvers.methods.robust import Robust
from solvers.methods.squarem import Squarem
from solvers.promises import Promises
from solvers.registry import get_solver, linear_names, names, register, register_linear
from solvers.root import root
from solvers.run import Run
from solvers.solution import Result, Solution, SolveError
from solvers.solve import solve
from solvers.tools.autotune import autotune
from solvers.tools.tolerance import ToleranceAdvice, cheapest_tolerance
from solvers.tools.trace import Trace, contraction_rate, trace
from solvers.tools.tuning import TuningResult as Tuning
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
    "Run",
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
