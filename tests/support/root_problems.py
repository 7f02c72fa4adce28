"""The 23 problems that NonlinearSolve.jl runs all of its algorithms on, each as g(y) = 0.

Most are of J. J. More, B. S. Garbow, K. E. Hillstrom, Testing Unconstrained Optimization Software,
ACM Trans. Math. Softw. 1981. Every g takes states of shape (..., n).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

import solvers


class RootProblem(NamedTuple):
    """g, and where to start from."""

    name: str
    g: Callable[[Tensor], Tensor]
    y0: Tensor


def together(*entries: Tensor) -> Tensor:
    return torch.stack(entries, -1)


def counted(y: Tensor) -> Tensor:
    """1 .. n."""
    return torch.arange(1, y.shape[-1] + 1, dtype=y.dtype)


def rosenbrock(y: Tensor) -> Tensor:
    return torch.cat((1 - y[..., :1], 10 * (y[..., 1:] - y[..., :-1].square())), -1)


def powell_singular(y: Tensor) -> Tensor:
    a, b, c, d = y.unbind(-1)
    return together(
        a + 10 * b, math.sqrt(5) * (c - d), (b - 2 * c).square(), math.sqrt(10) * (a - d).square()
    )


def powell_badly_scaled(y: Tensor) -> Tensor:
    a, b = y.unbind(-1)
    return together(1e4 * a * b - 1, torch.exp(-a) + torch.exp(-b) - 1.0001)


def wood(y: Tensor) -> Tensor:
    a, b, c, d = y.unbind(-1)
    first, second = b - a.square(), d - c.square()
    return together(
        a - 1 - 200 * a * first,
        200 * first + 20.2 * (b - 1) + 19.8 * (d - 1),
        c - 1 - 180 * c * second,
        180 * second + 20.2 * (d - 1) + 19.8 * (b - 1),
    )


def helical_valley(y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    turn = torch.atan2(b, a) / (2 * math.pi)
    turn = torch.where((a < 0) & (b < 0), turn + 1, turn)
    return together(10 * (c - 10 * turn), 10 * (torch.hypot(a, b) - 1), c)


def watson(y: Tensor) -> Tensor:
    """In two unknowns, with the powers of that suite, which are one more than More's."""
    a, b = y.unbind(-1)
    t = torch.arange(1, 30, dtype=y.dtype) / 29
    value = a[..., None] + b[..., None] * t
    error = 2 * b[..., None] - value.square() - 1
    first = (error * (1 - 2 * t * value) / t).sum(-1) + a * (3 - 2 * b + 2 * a.square())
    second = (error * (2 - 2 * t * value)).sum(-1) + b * (1 - b) - 1
    return together(first, second)


def chebyquad(y: Tensor) -> Tensor:
    """On [-1, 1], as there."""
    means, old, new = [], torch.ones_like(y), y
    for i in range(1, y.shape[-1] + 1):
        means.append(new.mean(-1) + (1 / (i * i - 1) if i % 2 == 0 else 0.0))
        old, new = new, 2 * y * new - old
    return together(*means)


def brown_almost_linear(y: Tensor) -> Tensor:
    count = y.shape[-1]
    linear = y[..., :-1] + y.sum(-1, keepdim=True) - (count + 1)
    return torch.cat((linear, y.prod(-1, keepdim=True) - 1), -1)


def boundary_value(y: Tensor) -> Tensor:
    h = 1 / (y.shape[-1] + 1)
    around = pad(y, (1, 1))
    return 2 * y - around[..., :-2] - around[..., 2:] + h * h / 2 * (y + h * counted(y) + 1) ** 3


def integral_equation(y: Tensor) -> Tensor:
    h = 1 / (y.shape[-1] + 1)
    t = h * counted(y)
    cube = (y + t + 1) ** 3
    below = (t * cube).cumsum(-1)
    above = ((1 - t) * cube).flip(-1).cumsum(-1).flip(-1)
    return y + h / 2 * ((1 - t) * below + t * above)


def trigonometric(y: Tensor) -> Tensor:
    cosines = y.cos()
    rest = y.shape[-1] - cosines.sum(-1, keepdim=True)
    return rest + counted(y) * (1 - cosines) - y.sin()


def variably_dimensioned(y: Tensor) -> Tensor:
    s = (counted(y) * (y - 1)).sum(-1, keepdim=True)
    return y - 1 + counted(y) * s * (1 + 2 * s.square())


def broyden_tridiagonal(y: Tensor) -> Tensor:
    around = pad(y, (1, 1))
    return (3 - 2 * y) * y - around[..., :-2] - 2 * around[..., 2:] + 1


def broyden_banded(y: Tensor) -> Tensor:
    """Each entry meets five before it and one behind it."""
    i = torch.arange(y.shape[-1])
    offset = i[None, :] - i[:, None]
    band = ((offset >= -5) & (offset <= 1) & (offset != 0)).to(y.dtype)
    return y * (2 + 5 * y.square()) + 1 - (y * (1 + y)) @ band.T


def hammarling(y: Tensor) -> Tensor:
    """A square root of a defective matrix."""
    size = math.isqrt(y.shape[-1])
    target = 1e-4 * torch.eye(size, dtype=y.dtype)
    target[0, 1] = 1.0
    matrix = y.unflatten(-1, (size, size))
    return (matrix @ matrix - target).flatten(-2)


def dennis_schnabel(y: Tensor) -> Tensor:
    a, b = y.unbind(-1)
    return together(a + b - 3, a.square() + b.square() - 9)


def exponential_pair(y: Tensor) -> Tensor:
    """Problem 18: b^2 (1 - exp(-a^2)) / a, and the same of b and a."""

    def share(a: Tensor, factor: Tensor) -> Tensor:
        safe = torch.where(a == 0, 1.0, a)
        return torch.where(a == 0, 0.0, factor * -torch.expm1(-safe.square()) / safe)

    a, b = y.unbind(-1)
    return together(share(a, b.square()), share(b, a))


def cubic_origin(y: Tensor) -> Tensor:
    return y * y.square().sum(-1, keepdim=True)


def double_root(y: Tensor) -> Tensor:
    return y * (y - 5).square()


def freudenstein_roth(y: Tensor) -> Tensor:
    a, b = y.unbind(-1)
    return together(a - 13 + b * (b * (5 - b) - 2), a - 29 + b * (b * (1 + b) - 14))


def boggs(y: Tensor) -> Tensor:
    a, b = y.unbind(-1)
    return together(a.square() - b + 1, a - torch.cos(math.pi / 2 * b))


def chandrasekhar(y: Tensor) -> Tensor:
    count = y.shape[-1]
    mu = counted(y) / count
    kernel = mu[:, None] / (mu[:, None] + mu[None, :])
    return y - 1 / (1 - 0.9 / (2 * count) * (y @ kernel.T))


def start(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=torch.float64)


N = torch.arange(1, 11, dtype=torch.float64)

PROBLEMS = [
    RootProblem("rosenbrock", rosenbrock, start(-1.2, *[1.0] * 9)),
    RootProblem("powell singular", powell_singular, start(3, -1, 0, 1)),
    RootProblem("powell badly scaled", powell_badly_scaled, start(0, 1)),
    RootProblem("wood", wood, start(-3, -1, -3, -1)),
    RootProblem("helical valley", helical_valley, start(-1, 0, 0)),
    RootProblem("watson", watson, start(0, 0)),
    RootProblem("chebyquad", chebyquad, start(0, 2 / 3)),
    RootProblem("brown almost linear", brown_almost_linear, 0 * N + 0.5),
    RootProblem("boundary value", boundary_value, N * (N - 11) / 121),
    RootProblem("integral equation", integral_equation, N * (N - 11) / 121),
    RootProblem("trigonometric", trigonometric, 0 * N + 0.1),
    RootProblem("variably dimensioned", variably_dimensioned, 1 - N / 10),
    RootProblem("broyden tridiagonal", broyden_tridiagonal, 0 * N - 1),
    RootProblem("broyden banded", broyden_banded, 0 * N - 1),
    RootProblem("hammarling 2", hammarling, start(1, 0, 0, 1)),
    RootProblem("hammarling 3", hammarling, torch.eye(3, dtype=torch.float64).flatten()),
    RootProblem("dennis schnabel", dennis_schnabel, start(1, 5)),
    RootProblem("exponential pair", exponential_pair, start(2, 2)),
    RootProblem("cubic origin", cubic_origin, start(3, 3)),
    RootProblem("double root", double_root, start(1)),
    RootProblem("freudenstein roth", freudenstein_roth, start(0.5, -2)),
    RootProblem("boggs", boggs, start(1, 0)),
    RootProblem("chandrasekhar", chandrasekhar, 0 * N + 1),
]


def main() -> None:
    """Count what each solver solves: `PYTHONPATH=. python tests/support/root_problems.py`."""
    for name in solvers.names():
        solved = []
        for sign in (-1.0, 1.0):
            solver = solvers.get_solver(name, rtol=0.0, atol=1e-8)
            found = [
                solvers.solve(
                    lambda y, p=p, sign=sign: y + sign * p.g(y), p.y0[None], solver=solver,
                    max_steps=400, throw=False,
                ).value
                for p in PROBLEMS
            ]  # fmt: skip
            solved.append({
                p.name
                for p, y in zip(PROBLEMS, found, strict=True)
                if float(p.g(y).abs().max()) <= 1e-4
            })  # fmt: skip
        counts = [len(solved[0]), len(solved[1]), len(solved[0] | solved[1])]
        print(f"{name:20}", *[f"{count:6}" for count in counts])


if __name__ == "__main__":
    main()
