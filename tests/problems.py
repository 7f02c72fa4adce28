"""The zoo: maps with a known fixed point, Jacobian and gradient, all in float64."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solvers.types import State


@dataclasses.dataclass(frozen=True)
class Problem:
    """A map f(y, *args), where to start, and the answer.

    Attributes:
        contracts: Undamped Picard reaches the answer.
        args: Per-sample tensors.
    """

    name: str
    f: Callable[..., State]
    y0: State
    args: tuple[Tensor, ...]
    y_star: State
    radius: float
    contracts: bool = True

    def to(self, dtype: torch.dtype, rows: int) -> "Problem":
        """The first `rows` samples in another dtype; the map casts what it closes over."""

        def cut(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: cut(part) for key, part in value.items()}
            return value[:rows].to(dtype)

        return dataclasses.replace(
            self,
            y0=cut(self.y0),
            args=tuple(cut(arg) for arg in self.args),
            y_star=cut(self.y_star),
        )


BATCH, SIZE = 17, 6


def linear(radius: float, *, normal: bool) -> Problem:
    """y -> W y + x with the spectral radius given; non-normal W has large transient growth."""
    generator = torch.Generator().manual_seed(7)
    basis, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    values = torch.linspace(-radius, radius, SIZE, dtype=torch.float64)
    inner = torch.diag(values)
    if not normal:
        inner += torch.triu(torch.full_like(inner, 0.3), 1)
    weight = basis @ inner @ basis.T
    x = torch.randn(BATCH, SIZE, generator=generator, dtype=torch.float64)
    y_star = torch.linalg.solve(torch.eye(SIZE, dtype=torch.float64) - weight, x.T).T
    name = f"linear-{radius}-{'normal' if normal else 'skewed'}"
    return Problem(
        name, lambda y, x: y @ weight.T.to(y.dtype) + x, torch.zeros_like(x), (x,), y_star, radius
    )


def rotation(scale: float) -> Problem:
    """Turn the plane by 90 degrees and scale: eigenvalues scale * (+-i)."""
    turn = scale * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    x = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y_star = torch.linalg.solve(torch.eye(2, dtype=torch.float64) - turn, x.T).T
    return Problem(
        f"rotation-{scale}",
        lambda y, x: y @ turn.T.to(y.dtype) + x,
        torch.zeros_like(x),
        (x,),
        y_star,
        scale,
        contracts=scale < 1,
    )


def tanh() -> Problem:
    """y -> tanh(W y + x); the answer by 10 000 plain iterations."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    weight *= 0.8 / torch.linalg.matrix_norm(weight, 2)
    x = torch.randn(BATCH, SIZE, generator=generator, dtype=torch.float64)

    def f(y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(y @ weight.T.to(y.dtype) + x)

    y = torch.zeros_like(x)
    for _ in range(10_000):
        y = f(y, x)
    return Problem("tanh", f, torch.zeros_like(x), (x,), y, 0.8)


def cosine() -> Problem:
    """One number per sample, no args."""
    y_star = torch.full((BATCH, 1), 0.7390851332151607, dtype=torch.float64)
    return Problem("cosine", torch.cos, torch.zeros_like(y_star), (), y_star, math.sin(0.739))


def coupled_tree() -> Problem:
    """Two tensors of different shapes that drive each other."""
    x = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def f(y: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        return {
            "a": 0.5 * y["b"].flatten(1)[:, :2] + x[:, :2],
            "b": (0.5 * torch.cat((y["a"], y["a"]), 1) + x).view(-1, 2, 2),
        }

    # a = b' / 2 + x', b' = a / 2 + x' for the first two entries, so a = 2 x' and b' = 2 x'.
    a = 2 * x[:, :2]
    b = (0.5 * torch.cat((a, a), 1) + x).view(-1, 2, 2)
    y0 = {"a": torch.zeros_like(a), "b": torch.zeros_like(b)}
    return Problem("tree", f, y0, (x,), {"a": a, "b": b}, 0.5)


PROBLEMS = [
    linear(0.5, normal=True),
    linear(0.9, normal=True),
    linear(0.99, normal=True),
    linear(0.9, normal=False),
    rotation(0.9),
    rotation(1.2),
    tanh(),
    cosine(),
    coupled_tree(),
]


def leaves(state: State) -> list[Tensor]:
    """The tensors of a tensor or a dict."""
    return list(state.values()) if isinstance(state, dict) else [state]


def distance(a: State, b: State) -> float:
    """Largest difference of two states."""
    pairs = zip(leaves(a), leaves(b), strict=True)
    return max(float((x.double() - y.double()).abs().max()) for x, y in pairs)


def rms(state: State) -> Tensor:
    """Root mean square of each sample over all of its entries."""
    flat = torch.cat([leaf.double().flatten(1) for leaf in leaves(state)], 1)
    return flat.square().mean(1).sqrt()


def residual(f: Callable[..., State], y: State, *args: Tensor) -> Tensor:
    """rms(f(y) - y) per sample, computed from scratch."""
    fy = f(y, *args)
    if isinstance(y, dict):
        return rms({key: fy[key].double() - y[key].double() for key in y})
    return rms(fy.double() - y.double())
