"""What the tests of the peers' defects have in common."""

from collections.abc import Callable

import torch
from torch import Tensor

import solvers

SOLVERS = ["anderson", "broyden", "picard"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(radius: float, size: int, seed: int = 1) -> Tensor:
    """A full matrix of that spectral radius, not normal."""
    full = draw(size, size, seed=seed)
    return radius * full / torch.linalg.eigvals(full).abs().max()


def tanh(weight: Tensor) -> Callable[..., Tensor]:
    return lambda y, x: torch.tanh(y @ weight.T) + x


def tight(name: str = "anderson") -> solvers.FixedPointSolver:
    return solvers.get_solver(name, rtol=1e-13, atol=1e-14)
