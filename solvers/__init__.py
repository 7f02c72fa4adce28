"""Find y = f(y) for a batch of states: plain tensors, one verdict per sample, no gradients.

>>> import torch, solvers
>>> s = solvers.solve(lambda y, x: 0.5 * y + x, torch.zeros(2, 3), torch.ones(2, 3))
>>> s.converged.tolist(), s.value[0].round(decimals=3).tolist()
([True, True], [2.0, 2.0, 2.0])

Modules that every solve needs are imported at once, each solver and tool when it is first used.
"""

from typing import TYPE_CHECKING

from solvers import lazy
from solvers.base import FixedPointSolver
from solvers.promises import Promises
from solvers.registry import (
    LINEAR,
    SOLVERS,
    get_solver,
    linear_names,
    names,
    register,
    register_linear,
)
from solvers.root import root
from solvers.run import Run
from solvers.solution import Result, Solution, SolveError
from solvers.solve import solve
from solvers.version import __version__ as __version__

if TYPE_CHECKING:
    from solvers import contrib as adapters
    from solvers import testing
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
    from solvers.tools.autotune import autotune
    from solvers.tools.tolerance import ToleranceAdvice, cheapest_tolerance
    from solvers.tools.trace import Trace, contraction_rate, trace
    from solvers.tools.tuning import TuningResult as Tuning
else:
    __getattr__, __dir__ = lazy.attributes(
        __name__,
        {
            "Aitken": "solvers.methods.aitken:Aitken",
            "Anderson": "solvers.methods.anderson:Anderson",
            "AndersonSafe": "solvers.methods.anderson_safe:AndersonSafe",
            "AndersonType1": "solvers.methods.anderson_type1:AndersonType1",
            "BiCGStab": "solvers.methods.linear.bicgstab:BiCGStab",
            "Broyden": "solvers.methods.broyden:Broyden",
            "Gmres": "solvers.methods.linear.gmres:Gmres",
            "Neumann": "solvers.methods.linear.neumann:Neumann",
            "NewtonKrylov": "solvers.methods.newton_krylov:NewtonKrylov",
            "Picard": "solvers.methods.picard:Picard",
            "Robust": "solvers.methods.robust:Robust",
            "Squarem": "solvers.methods.squarem:Squarem",
            "ToleranceAdvice": "solvers.tools.tolerance:ToleranceAdvice",
            "Trace": "solvers.tools.trace:Trace",
            "Tuning": "solvers.tools.tuning:TuningResult",
            "adapters": "solvers.contrib",
            "autotune": "solvers.tools.autotune:autotune",
            "cheapest_tolerance": "solvers.tools.tolerance:cheapest_tolerance",
            "contraction_rate": "solvers.tools.trace:contraction_rate",
            "contrib": "solvers.contrib",
            "testing": "solvers.testing",
            "tools": "solvers.tools",
            "trace": "solvers.tools.trace:trace",
        },
    )

SOLVERS.declare(
    {
        "aitken": "solvers:Aitken",
        "anderson": "solvers:Anderson",
        "anderson_safe": "solvers:AndersonSafe",
        "anderson_type1": "solvers:AndersonType1",
        "broyden": "solvers:Broyden",
        "newton_krylov": "solvers:NewtonKrylov",
        "picard": "solvers:Picard",
        "robust": "solvers:Robust",
        "squarem": "solvers:Squarem",
    }
)
SOLVERS.declare(
    {
        "scipy.anderson": "solvers.contrib:ScipyAnderson",
        "scipy.broyden1": "solvers.contrib:ScipyBroyden1",
        "scipy.krylov": "solvers.contrib:ScipyKrylov",
    },
    needs="scipy",
)
SOLVERS.declare(
    {
        "torchdeq.anderson": "solvers.contrib:TorchdeqAnderson",
        "torchdeq.broyden": "solvers.contrib:TorchdeqBroyden",
        "torchdeq.picard": "solvers.contrib:TorchdeqPicard",
    },
    needs="torchdeq",
)
LINEAR.declare(
    {"bicgstab": "solvers:BiCGStab", "gmres": "solvers:Gmres", "neumann": "solvers:Neumann"}
)

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
