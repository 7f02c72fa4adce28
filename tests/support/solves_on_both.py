"""Solves, gradients and diagnostics on both devices; see `on_both`."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from on_both import drawn, same
from torch import Tensor

import implicit
import solvers
from implicit import Exact, fixed_point
from solvers import Solution, stopped

ROWS, SIZE = 6, 12


def contraction(
    device: torch.device, rows: int = ROWS, size: int = SIZE, spread: bool = True
) -> tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]:
    """f(y, x, rate) = tanh(rate * y W) + x, its start, x and rate.

    Args:
        device: Where.
        rows: Samples.
        size: Entries of each.
        spread: Whether samples contract at different rates, and so converge at different steps.
    """
    weight = drawn(size, size, seed=1)
    weight = (weight / torch.linalg.matrix_norm(weight, 2)).to(device)
    x = drawn(rows, size, seed=2).to(device)
    rate = torch.linspace(0.05, 0.9, rows) if spread else torch.full((rows,), 0.7)
    rate = rate.double()[:, None].to(device)
    return lambda y, x, rate: torch.tanh(rate * (y @ weight)) + x, torch.zeros_like(x), x, rate


def evidence(s: Solution) -> Any:
    """What a solution says of its samples; a device may call `f` a few times more."""
    return s.value, s.residual, s.result, s.num_steps


def _independent(name: str, device: torch.device) -> Any:
    f, y0, *args = contraction(device)
    return evidence(solvers.solve(f, y0, *args, solver=name, max_steps=40, throw=False))


def _kept_together(name: str, device: torch.device) -> Any:
    f, y0, *args = contraction(device)
    options: Any = {"solver": name, "max_steps": 40, "throw": False, "compact": False}
    return evidence(solvers.solve(f, y0, *args, **options))


def _coupled(name: str, device: torch.device) -> Any:
    f, y0, *args = contraction(device)
    mixed = lambda y: f(0.5 * (y + y.flip(0)), *args)  # noqa: E731
    return evidence(solvers.solve(mixed, y0, solver=name, max_steps=40, throw=False))


def _short(name: str, device: torch.device) -> Any:
    f, y0, *args = contraction(device)
    options: Any = {"solver": name, "max_steps": 3, "throw": False}
    return [evidence(solvers.solve(lambda y: f(y, *args), y0, **options)),
            evidence(solvers.solve(f, y0, *args, **options))]  # fmt: skip


def _broken(name: str, device: torch.device) -> Any:
    f, y0, x, rate = contraction(device)
    x[1, 0] = float("nan")
    rate[3] = 40.0
    return evidence(solvers.solve(f, y0, x, rate, solver=name, max_steps=15, throw=False))


def _structured(name: str, device: torch.device) -> Any:
    f, y0, x, rate = contraction(device)
    small = drawn(ROWS, 3, dtype=torch.float32).to(device)

    def g(state: dict[str, Tensor], x: Tensor, rate: Tensor) -> dict[str, Tensor]:
        y, part = state["y"], state["part"]
        return {"y": f(y, x, rate), "part": 0.5 * torch.sin(part) + y[:, :3].to(part.dtype)}

    state, units = {"y": y0, "part": small}, {"y": 2.0, "part": torch.ones(3)}
    options: Any = {"solver": solvers.get_solver(name, rtol=1e-3), "throw": False}
    return evidence(solvers.solve(g, state, x, rate, scale=units, **options))[2:]


def _tokens(name: str, device: torch.device) -> Any:
    if not solvers.get_solver(name).promises.tokens:
        return "refused"
    mix = torch.rand(5, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64).tril()
    mix, x = (0.8 * mix / mix.sum(1, keepdim=True)).to(device), drawn(2, 5, 3).to(device)
    f = lambda y, x: torch.tanh(mix @ y) + x  # noqa: E731
    options: Any = {"solver": name, "batch_dims": 2, "throw": False}
    return [evidence(solvers.solve(f, torch.zeros_like(x), x, **options)),
            evidence(solvers.solve(f, torch.zeros_like(x), x, **options, max_steps=4))]  # fmt: skip


def _stepped(name: str, device: torch.device) -> Any:
    f, y0, *args = contraction(device)
    if solvers.get_solver(name).whole:
        return "refused"
    run, rows = solvers.Run(f, y0, *args, solver=name), []
    fourth = torch.arange(ROWS, device=device) == 4
    # Which few solves ask for: samples that end far off may be looked at from beside.
    value, coupling = run.status.value, run.status.coupling
    beside = stopped.beside(value, fourth, coupling, run.status.rule.roundoff)
    while run.point is not None:
        run.tell(f(run.point, *run.args))
        rows.append(run.newly_stopped()[0])
        run.stop(fourth, solvers.Result.max_steps)
    return evidence(run.solution()), rows, beside


SOLVES: dict[str, Callable[[str, torch.device], Any]] = {
    case.__name__.strip("_"): case
    for case in (
        _independent, _kept_together, _coupled, _short, _broken, _structured, _tokens, _stepped
    )
}  # fmt: skip


def solve(name: str, kind: str) -> None:
    """A solve of one kind with a solver."""
    same(functools.partial(SOLVES[kind], name))


def _gradients(mode: Any, solver: Any, device: torch.device) -> Any:
    f, y0, x, rate = contraction(device)
    weight = drawn(SIZE, SIZE, seed=5).div(8).to(device).requires_grad_()
    x.requires_grad_()

    def g(y: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        return f(y, x, rate) + 0.1 * torch.sin(y @ weight)

    s = fixed_point(g, y0, x, rate, solver=solver, backward=mode, max_steps=60)
    loss = (s.value * drawn(ROWS, SIZE, seed=6).to(device)).sum()
    return evidence(s), torch.autograd.grad(loss, (x, weight)), [a.residual for a in s.adjoints]


def gradients(mode: str, solver: str = "anderson") -> None:
    """The gradients of a mode."""
    same(functools.partial(_gradients, mode, solver))


def adjoint_solver(name: str) -> None:
    """The exact gradient, its adjoint equation solved by a linear solver."""
    same(functools.partial(_gradients, Exact(solver=name), "anderson"))


def _derivatives(mode: str, device: torch.device) -> Any:
    f, _, x, rate = contraction(device, rows=3, size=4)
    tight: Any = {"solver": solvers.get_solver("picard", rtol=1e-12), "max_steps": 300}

    def value(x: Tensor) -> Tensor:
        return fixed_point(f, torch.zeros_like(x), x, rate, backward=mode, **tight).value

    def loss(x: Tensor) -> Tensor:
        return value(x).square().sum()

    def row(x: Tensor, rate: Tensor) -> Tensor:
        alone: Any = {"backward": mode, "batch_dims": 0, **tight}
        return fixed_point(f, torch.zeros_like(x), x, rate, **alone).value.sum()

    found: Any = {"grad": torch.func.grad(loss)(x)}
    if mode in ("exact", "unrolled"):
        found["jvp"] = torch.func.jvp(value, (x,), (torch.ones_like(x),))
    if mode == "exact":
        found["hessian"] = torch.func.hessian(loss)(x)
        found["vmap grad"] = torch.vmap(torch.func.grad(row))(x, rate)
    return found


def derivatives(mode: str) -> None:
    """Derivatives of `torch.func`."""
    same(functools.partial(_derivatives, mode))


def _diagnostics(device: torch.device) -> Any:
    f, y0, x, rate = contraction(device)
    y = fixed_point(f, y0, x, rate).value
    rate.requires_grad_()
    radius = implicit.spectral_radius(lambda y: f(y, x, rate), y)
    penalty = implicit.jacobian_penalty(lambda y: f(y, x, rate), y)
    torch.manual_seed(1)
    layer = implicit.spectral_normalise(torch.nn.Linear(SIZE, SIZE).double().to(device), 0.5)
    return radius.radius, radius.residual, torch.autograd.grad(penalty.sum(), rate), layer(y)


def diagnostics() -> None:
    """The spectral radius, the penalty and normalised weights."""
    same(_diagnostics)


def _tools(device: torch.device) -> Any:
    f, y0, *args = contraction(device)
    traced = solvers.trace(f, y0, *args, keep_states=True)
    tuned = solvers.autotune(f, y0, *args, rounds=1, candidates=["picard", "anderson"])
    assert tuned.solver is not None
    nothing = solvers.trace(f, y0[:0], *(arg[:0] for arg in args))
    return traced.residual, solvers.contraction_rate(traced.residual), nothing.residual


def tools() -> None:
    """The trace of a solve and the choice of a solver."""
    same(_tools)
