"""Measure, penalise and bound the Jacobian of a map, and draw how a solve went.

`implicit.diagnostics.plots` is imported on its own, since it needs matplotlib.
"""

from implicit.diagnostics.normalise import cached_weights, spectral_normalise
from implicit.diagnostics.penalty import jacobian_penalty
from implicit.diagnostics.spectral import SpectralRadius, spectral_radius

__all__ = [
    "SpectralRadius",
    "cached_weights",
    "jacobian_penalty",
    "spectral_normalise",
    "spectral_radius",
]
