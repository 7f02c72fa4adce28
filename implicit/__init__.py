"""Differentiate through the solution of y = f(y).

>>> import torch
>>> from implicit import fixed_point
>>> x = torch.ones(2, 3, requires_grad=True)
>>> s = fixed_point(lambda y, x: 0.5 * y + x, torch.zeros(2, 3), x)
>>> s.value.sum().backward()
>>> x.grad[0].round(decimals=3).tolist()
[2.0, 2.0, 2.0]

During one call of `fixed_point`, `f` must be one fixed function. It is called as often as the
solver and the backward mode need. Dropout inside `f` draws another mask in every call, and
BatchNorm in training mode updates its statistics in every call: keep them out of `f`, or in
evaluation mode.

Modules that every solve needs are imported at once, each mode and tool when it is first used.
"""

from pathlib import Path
from runpy import run_path
from typing import TYPE_CHECKING

# Run by its path, since another package `solvers` may hide ours.
run_path(str(Path(__file__).parents[1] / "solvers" / "siblings.py"))["check"](__file__, "solvers")

from implicit.base import AdjointMode, BackwardMode, SolveContext
from implicit.fixed_point import fixed_point
from implicit.layer import FixedPointLayer
from implicit.registry import MODES, backward_modes, get_backward, register
from solvers import Solution, SolveError, lazy
from solvers.version import __version__ as __version__

if TYPE_CHECKING:
    from implicit import testing
    from implicit.diagnostics.normalise import cached_weights, spectral_normalise
    from implicit.diagnostics.penalty import jacobian_penalty
    from implicit.diagnostics.spectral import SpectralRadius, spectral_radius
    from implicit.modes.exact import Exact
    from implicit.modes.jacobian_free import JacobianFree
    from implicit.modes.neumann import Neumann
    from implicit.modes.phantom import Phantom
    from implicit.modes.shine import Shine
    from implicit.modes.unrolled import Unrolled
    from implicit.modes.warm_start import WarmStart
else:
    __getattr__, __dir__ = lazy.attributes(
        __name__,
        {
            "Exact": "implicit.modes.exact:Exact",
            "JacobianFree": "implicit.modes.jacobian_free:JacobianFree",
            "Neumann": "implicit.modes.neumann:Neumann",
            "Phantom": "implicit.modes.phantom:Phantom",
            "Shine": "implicit.modes.shine:Shine",
            "SpectralRadius": "implicit.diagnostics.spectral:SpectralRadius",
            "Unrolled": "implicit.modes.unrolled:Unrolled",
            "WarmStart": "implicit.modes.warm_start:WarmStart",
            "cached_weights": "implicit.diagnostics.normalise:cached_weights",
            "diagnostics": "implicit.diagnostics",
            "jacobian_penalty": "implicit.diagnostics.penalty:jacobian_penalty",
            "spectral_normalise": "implicit.diagnostics.normalise:spectral_normalise",
            "spectral_radius": "implicit.diagnostics.spectral:spectral_radius",
            "testing": "implicit.testing",
        },
    )

MODES.declare(
    {
        "exact": "implicit:Exact",
        "jacobian_free": "implicit:JacobianFree",
        "neumann": "implicit:Neumann",
        "phantom": "implicit:Phantom",
        "shine": "implicit:Shine",
        "unrolled": "implicit:Unrolled",
    }
)

__all__ = [
    "AdjointMode",
    "BackwardMode",
    "Exact",
    "FixedPointLayer",
    "JacobianFree",
    "Neumann",
    "Phantom",
    "Shine",
    "Solution",
    "SolveContext",
    "SolveError",
    "SpectralRadius",
    "Unrolled",
    "WarmStart",
    "backward_modes",
    "cached_weights",
    "fixed_point",
    "get_backward",
    "jacobian_penalty",
    "register",
    "spectral_normalise",
    "spectral_radius",
    "testing",
]
