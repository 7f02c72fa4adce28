"""The zoo: test maps with a known fixed point, Jacobian and gradient, all in float64."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solvers.types import State


@dataclasses.dataclass(frozen=True)
class Problem:
    """A map f(y, *args), a first guess, and the solution.

    Attributes:
        name: How the problem is called in failures.
        f: The map.
        y0: First guess.
        y_star: The solution.
        args: Per-sample tensors.
        radius: Spectral radius of df/dy at the solution, or a bound on it (tanh).
        jacobian: df/dy at the solution, shape (samples, entries, entries).
        contracts: Undamped Picard converges to the solution.
        affine: f(y) = K y + b for some K and b.
        weight: The matrix W of y -> phi(W y + x); None for other maps.
        slope: phi' at the solution, one number per entry.
        build: f as a function of W, for gradients with respect to W: `build(weight)` is `f`.
    """

    name: str
    f: Callable[..., State]
    y0: State
    args: tuple[Tensor, ...]
    y_star: State
    radius: float
    jacobian: Tensor
    contracts: bool = True
    affine: bool = False
    weight: Tensor | None = None
    slope: Tensor | None = None
    build: Callable[[Tensor], Callable[..., Tensor]] | None = None

    def to(self, dtype: torch.dtype, rows: int) -> "Problem":
        """Return the first `rows` samples in another dtype; the map casts what it closes over."""

        def cut(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: cut(part) for key, part in value.items()}
            return value[:rows].to(dtype)

        return dataclasses.replace(
            self,
            y0=cut(self.y0),
            args=tuple(cut(arg) for arg in self.args),
            y_star=cut(self.y_star),
            jacobian=self.jacobian[:rows],
            slope=None if self.slope is None else self.slope[:rows],
        )

    @property
    def real(self) -> bool:
        """Whether all eigenvalues of df/dy at the solution are real."""
        return float(torch.linalg.eigvals(self.jacobian).imag.abs().max()) < 1e-9

    @property
    def size(self) -> int:
        """Number of entries of a sample."""
        return self.jacobian.shape[-1]

    @property
    def amplification(self) -> float:
        """Norm of (I - J)^-1, by which the error can exceed the residual."""
        eye = torch.eye(self.jacobian.shape[-1], dtype=torch.float64)
        return float(torch.linalg.matrix_norm(torch.linalg.inv(eye - self.jacobian), 2).max())


BATCH, SIZE = 17, 6


def exact_gradients(problem: Problem) -> tuple[Tensor, Tensor]:
    """Gradients of half the sum of squares of y* with respect to x and W, by dense algebra.

    With u = (I - J)^-T y*, the gradient to x is slope * u per sample. That to W is the sum over
    samples of its outer products with y*. Only for problems that have a weight.
    """
    assert problem.slope is not None
    eye = torch.eye(problem.jacobian.shape[-1], dtype=torch.float64)
    u = torch.linalg.solve((eye - problem.jacobian).mT, problem.y_star[..., None])[..., 0]
    by_x = problem.slope * u
    return by_x, by_x.T @ problem.y_star


def affine(name: str, weight: Tensor, x: Tensor, radius: float, contracts: bool = True) -> Problem:
    """The map y -> W y + x, solved densely."""

    def build(weight: Tensor) -> Callable[..., Tensor]:
        return lambda y, x: y @ weight.T.to(y.dtype) + x

    eye = torch.eye(len(weight), dtype=torch.float64)
    return Problem(
        name,
        build(weight),
        torch.zeros_like(x),
        (x,),
        torch.linalg.solve(eye - weight, x.T).T,
        radius,
        weight.expand(len(x), -1, -1),
        contracts,
        True,
        weight,
        torch.ones_like(x),
        build,
    )


def linear(radius: float, *, normal: bool) -> Problem:
    """An affine map of a given radius: W is symmetric, or skewed with large transient growth."""
    generator = torch.Generator().manual_seed(7)
    basis, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    values = torch.linspace(-radius, radius, SIZE, dtype=torch.float64)
    inner = torch.diag(values)
    if not normal:
        inner += torch.triu(torch.full_like(inner, 0.3), 1)
    x = torch.randn(BATCH, SIZE, generator=generator, dtype=torch.float64)
    name = f"linear-{radius}-{'normal' if normal else 'skewed'}"
    return affine(name, basis @ inner @ basis.T, x, radius)


def rotation(scale: float) -> Problem:
    """Rotate the plane by 90 degrees and scale it: the eigenvalues are scale * (+-i)."""
    turn = scale * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    x = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return affine(f"rotation-{scale}", turn, x, scale, contracts=scale < 1)


def tanh() -> Problem:
    """A nonlinear contraction, solved by 300 plain iterations at a rate below 0.8."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    weight *= 0.8 / torch.linalg.matrix_norm(weight, 2)
    x = torch.randn(BATCH, SIZE, generator=generator, dtype=torch.float64)

    def build(weight: Tensor) -> Callable[..., Tensor]:
        return lambda y, x: torch.tanh(y @ weight.T.to(y.dtype) + x)

    f, y = build(weight), torch.zeros_like(x)
    for _ in range(300):
        y = f(y, x)
    slope = 1 - y.square()
    jacobian = slope[:, :, None] * weight
    return Problem(
        "tanh", f, torch.zeros_like(x), (x,), y, 0.8, jacobian,
        weight=weight, slope=slope, build=build,
    )  # fmt: skip


def cosine() -> Problem:
    """The cosine of one number per sample, without args."""
    y_star = torch.full((BATCH, 1), 0.7390851332151607, dtype=torch.float64)
    slope = -y_star.sin()
    radius = float(slope.abs().max())
    return Problem(
        "cosine", torch.cos, torch.zeros_like(y_star), (), y_star, radius, slope[:, :, None]
    )


def coupled_tree() -> Problem:
    """A dict of two tensors of different shapes, each a function of the other."""
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
    jacobian = torch.zeros(BATCH, 6, 6, dtype=torch.float64)
    for row, column in [(0, 2), (1, 3), (2, 0), (3, 1), (4, 0), (5, 1)]:
        jacobian[:, row, column] = 0.5
    return Problem("tree", f, y0, (x,), {"a": a, "b": b}, 0.5, jacobian, affine=True)


def doubling() -> Problem:
    """The map y -> 2 y + 1, whose fixed point -1 repels plain iteration."""
    y_star = torch.full((BATCH, 2), -1.0, dtype=torch.float64)
    jacobian = 2 * torch.eye(2, dtype=torch.float64).expand(BATCH, -1, -1)
    return Problem(
        "doubling", lambda y: 2 * y + 1, torch.zeros_like(y_star), (), y_star, 2.0, jacobian,
        contracts=False, affine=True,
    )  # fmt: skip


PROBLEMS = [
    linear(0.5, normal=True),
    linear(0.9, normal=True),
    linear(0.99, normal=True),
    linear(0.5, normal=False),
    linear(0.9, normal=False),
    linear(0.99, normal=False),
    rotation(0.9),
    rotation(1.2),
    tanh(),
    cosine(),
    coupled_tree(),
    doubling(),
]


def leaves(state: State) -> list[Tensor]:
    """List the tensors of a state, a tensor or a dict."""
    return list(state.values()) if isinstance(state, dict) else [state]


def distance(a: State, b: State) -> float:
    """Largest absolute difference of two states."""
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
