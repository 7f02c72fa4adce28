"""Find y = f(y) for a batch of states: plain tensors, one verdict per sample, no gradients.

>>> import torch, solvers
>>> s = solvers.solve(lambda y, x: 0.5 * y + x, torch.zeros(2, 3), torch.ones(2, 3))
>>> s.converged.tolist(), s.value[0].round(decimals=3).tolist()
([True, True], [2.0, 2.0, 2.0])
"""

from solvers.anderson import Anderson
from solvers.base import FixedPointSolver
from solvers.broyden import Broyden
from solvers.picard import Picard
from solvers.registry import get_solver, names, register
from solvers.solution import Result, Solution, SolveError
from solvers.solve import solve

__all__ = [
    "Anderson",
    "Broyden",
    "FixedPointSolver",
    "Picard",
    "Result",
    "Solution",
    "SolveError",
    "get_solver",
    "names",
    "register",
    "solve",
]
