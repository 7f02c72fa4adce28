"""Well-known solvers of other libraries, registered where those are installed.

Each is judged as our own solvers are: verdicts, residuals and counts are measured here. They
cannot be recorded by autograd, so `backward="unrolled"` refuses them.
"""

from solvers.contrib.base import PeerSolver
from solvers.contrib.scipy import ScipyAnderson, ScipyBroyden1, ScipyKrylov
from solvers.contrib.torchdeq import TorchdeqAnderson, TorchdeqBroyden, TorchdeqPicard

__all__ = [
    "PeerSolver",
    "ScipyAnderson",
    "ScipyBroyden1",
    "ScipyKrylov",
    "TorchdeqAnderson",
    "TorchdeqBroyden",
    "TorchdeqPicard",
]
