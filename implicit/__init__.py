"""Differentiate through the solution of y = f(y).

>>> import torch
>>> from implicit import fixed_point
>>> x = torch.ones(2, 3, requires_grad=True)
>>> s = fixed_point(lambda y, x: 0.5 * y + x, torch.zeros(2, 3), x)
>>> s.value.sum().backward()
>>> x.grad[0].round(decimals=3).tolist()
[2.0, 2.0, 2.0]

During one call `f` is taken to be one fixed function, and is called as often as the solver and
the backward mode need. Dropout inside `f` draws another mask in every call, and BatchNorm in
training mode updates its statistics in every call: keep them out of `f`, or in evaluation mode.
"""

from pathlib import Path
from runpy import run_path

# By its path, since another `solvers` may hide ours.
run_path(str(Path(__file__).parents[1] / "solvers" / "siblings.py"))["check"](__file__, "solvers")

from implicit import testing
from implicit.base import AdjointMode, BackwardMode, SolveContext
from implicit.diagnostics import (
    SpectralRadius,
    cached_weights,
    jacobian_penalty,
    spectral_normalise,
    spectral_radius,
)
from implicit.fixed_point import fixed_point
from implicit.layer import FixedPointLayer
from implicit.modes import Exact, JacobianFree, Neumann, Phantom, Shine, Unrolled, WarmStart
from implicit.registry import backward_modes, get_backward, register
from solvers import Solution, SolveError
from solvers.version import __version__ as __version__

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
