"""Four fixed-point problems that every library is given: NumPy data, and the maps in PyTorch.

The data are seeded and in float64, so that any backend can build the same problem from them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Arrays = dict[str, np.ndarray]
HEADS, GAIN = 4, 0.45


@dataclasses.dataclass(frozen=True)
class Posed:
    """A problem in one dtype: find y = f(y, *args), starting at y0."""

    f: Callable[..., Tensor]
    y0: Tensor
    args: tuple[Tensor, ...]

    def closed(self) -> Callable[[Tensor], Tensor]:
        """The map of y alone, for libraries that know no per-sample arguments."""
        return lambda y: self.f(y, *self.args)


@dataclasses.dataclass(frozen=True)
class SharedProblem:
    """A problem as data.

    Attributes:
        kind: Which map: "tanh", "rate" or "blocks".
        max_steps: Budget that every solver is given.
        shape: Of the state; the first dim indexes samples.
        weights: What all samples share.
        args: What each sample has of its own, in the order in which the map takes it.
    """

    name: str
    title: str
    kind: str
    max_steps: int
    shape: tuple[int, ...]
    weights: Arrays
    args: Arrays

    def to(self, dtype: torch.dtype) -> Posed:
        """Build the map, the start (zero) and the arguments."""

        def cast(arrays: Arrays) -> dict[str, Tensor]:
            return {key: torch.as_tensor(value).to(dtype) for key, value in arrays.items()}

        f = MAPS[self.kind](cast(self.weights))
        return Posed(f, torch.zeros(self.shape, dtype=dtype), tuple(cast(self.args).values()))


def tanh_map(weights: dict[str, Tensor]) -> Callable[..., Tensor]:
    """tanh(W y + injection), per sample."""
    transposed = weights["weight"].T.contiguous()
    return lambda y, injection: torch.tanh(torch.addmm(injection, y, transposed))


def rate_map(weights: dict[str, Tensor]) -> Callable[..., Tensor]:
    """Injection + rate * tanh(W y): the rate sets how fast a sample converges."""
    transposed = weights["weight"].T.contiguous()
    return lambda y, injection, rate: torch.addcmul(injection, rate, torch.tanh(y @ transposed))


def blocks_map(weights: dict[str, Tensor]) -> Callable[..., Tensor]:
    """Two pre-norm transformer blocks over injection + gain * y, and a final norm."""
    blocks = [
        [weights[f"{i}.{part}"] for part in ("qkv", "out", "up", "down")]
        for i in range(len(weights) // 4)
    ]

    def f(y: Tensor, injection: Tensor) -> Tensor:
        width = y.shape[-1:]
        h = injection + GAIN * y
        for qkv, out, up, down in blocks:
            split = F.linear(F.layer_norm(h, width), qkv).unflatten(-1, (3, HEADS, -1))
            q, k, v = split.permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            h = h + GAIN * F.linear(mixed, out)
            wide = F.gelu(F.linear(F.layer_norm(h, width), up), approximate="tanh")
            h = h + GAIN * F.linear(wide, down)
        return F.layer_norm(h, width)

    return f


MAPS: dict[str, Callable[[dict[str, Tensor]], Callable[..., Tensor]]] = {
    "tanh": tanh_map,
    "rate": rate_map,
    "blocks": blocks_map,
}


def parameters_of_a() -> Arrays:
    """W, U, b and x of problem (a), whose injection is U x + b."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(256, 256))
    weight *= 0.9 / np.abs(np.linalg.eigvals(weight)).max()
    into = rng.normal(size=(256, 256)) / 16 * 0.3
    bias = 0.1 * rng.normal(size=256)
    return {"W": weight, "U": into, "b": bias, "x": rng.normal(size=(64, 256))}


def problem_a() -> SharedProblem:
    """A plain deep equilibrium layer."""
    p = parameters_of_a()
    injection = p["x"] @ p["U"].T + p["b"]
    return SharedProblem(
        "a", "(a) 64 x 256, tanh, spectral radius 0.9", "tanh", 300, injection.shape,
        {"weight": p["W"]}, {"injection": injection},
    )  # fmt: skip


def problem_b() -> SharedProblem:
    """Eigenvalues from -0.99 to 0.99 under an upper triangle: slow, with transient growth."""
    rng = np.random.default_rng(1)
    basis, _ = np.linalg.qr(rng.normal(size=(256, 256)))
    inner = np.diag(rng.permutation(np.linspace(-0.99, 0.99, 256)))
    inner = inner + np.triu(rng.normal(size=(256, 256)), 1) * 0.008
    injection = 0.003 * rng.normal(size=(64, 256))
    return SharedProblem(
        "b", "(b) 64 x 256, non-normal, spectral radius 0.99", "tanh", 1500, injection.shape,
        {"weight": basis @ inner @ basis.T}, {"injection": injection},
    )  # fmt: skip


def problem_c() -> SharedProblem:
    """100 samples, of which ten converge slowly."""
    rng = np.random.default_rng(2)
    basis, _ = np.linalg.qr(rng.normal(size=(256, 256)))
    weight = basis @ np.diag(np.linspace(-1, 1, 256)) @ basis.T
    rate = np.full((100, 1), 0.3)
    rate[rng.permutation(100)[:10]] = 0.98
    injection = 0.05 * rng.normal(size=(100, 256))
    return SharedProblem(
        "c", "(c) 100 x 256, 90 % at radius 0.3 and 10 % at 0.98", "rate", 1000, injection.shape,
        {"weight": weight}, {"injection": injection, "rate": rate},
    )  # fmt: skip


def problem_d() -> SharedProblem:
    """A map that costs far more than the solver around it."""
    rng = np.random.default_rng(3)
    width, weights = 128, {}
    for i in range(2):
        weights[f"{i}.qkv"] = rng.normal(size=(3 * width, width)) / math.sqrt(width)
        weights[f"{i}.out"] = rng.normal(size=(width, width)) / math.sqrt(width)
        weights[f"{i}.up"] = rng.normal(size=(4 * width, width)) / math.sqrt(width)
        weights[f"{i}.down"] = rng.normal(size=(width, 4 * width)) / math.sqrt(4 * width)
    injection = rng.normal(size=(16, 64, width))
    return SharedProblem(
        "d", "(d) 16 x 64 x 128, two transformer blocks", "blocks", 150, injection.shape,
        weights, {"injection": injection},
    )  # fmt: skip


PROBLEMS: dict[str, Callable[[], SharedProblem]] = {
    "a": problem_a,
    "b": problem_b,
    "c": problem_c,
    "d": problem_d,
}


def relative_residuals(f: Callable[..., Tensor], y: Tensor, *args: Any) -> Tensor:
    """Per sample |f(y) - y| / |f(y)| with norms in float64; inf where it is not finite."""
    with torch.no_grad():
        fy = f(y, *args).double().flatten(1)
    norm = torch.linalg.vector_norm(fy - y.double().flatten(1), dim=1)
    relative = norm / torch.linalg.vector_norm(fy, dim=1)
    # 0 / 0 is a solution at zero; inf / inf is not.
    relative = torch.where((norm == 0) & fy.isfinite().all(1), 0.0, relative)
    return relative.nan_to_num(nan=math.inf)
