"""Solvers of this library and of others behind one signature, with what each one claims."""

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from torchdeq.solver import get_solver as torchdeq_solver

import solvers

Map = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a solver returned, and the samples (a bool each) for which it claims success.

    Only a compiled loop, in which calls cannot be counted from outside, says how many it made.
    """

    value: Tensor
    claimed: Tensor
    evaluations: int | None = None


# solve(f, y0, args, rtol, max_steps): stop at |f(y) - y| <= rtol * |f(y)| for every sample.
Solve = Callable[[Map, Tensor, tuple[Tensor, ...], float, int], Answer]


@dataclasses.dataclass(frozen=True)
class Contender:
    """A solver, its library, the family within which it is compared, and what is compiled.

    That is `compiled` for f, and `graph` for the loop with f in it.
    """

    library: str
    family: str
    solve: Solve
    compiled: bool = False
    graph: bool = False


class Observed:
    """A map that counts its calls and rows, and raises TimeoutError once its time is up."""

    def __init__(self, f: Map, seconds: float = float("inf")):
        self.f, self.seconds = f, seconds
        self.evaluations, self.rows = 0, 0
        self.began = time.perf_counter()

    def __call__(self, y: Tensor, *args: Tensor) -> Tensor:
        if time.perf_counter() - self.began > self.seconds:
            raise TimeoutError(f"> {self.seconds:g} s")
        self.evaluations += 1
        self.rows += len(y)
        return self.f(y, *args)


def native_names() -> list[str]:
    """Solvers of our own; adapters to other libraries have a dot in their names."""
    return [name for name in solvers.names() if "." not in name]


def ours(name: str, loop: Any = "auto", **options: Any) -> Solve:
    """A registered solver; per-sample data go through `args`, so that samples can leave."""

    def solve(f: Map, y0: Tensor, args: Any, rtol: float, max_steps: int) -> Answer:
        solver = solvers.get_solver(name, rtol=rtol, atol=0.0, **options)
        s = solvers.solve(f, y0, *args, solver=solver, max_steps=max_steps, throw=False, loop=loop)
        return Answer(s.value, s.converged, s.num_evals)

    return solve


def torchdeq(name: str, **options: Any) -> Solve:
    """A solver of torchdeq, stopped by its relative residual; its claim is its own record."""
    run = torchdeq_solver(name)

    def solve(f: Map, y0: Tensor, args: Any, rtol: float, max_steps: int) -> Answer:
        with torch.no_grad():
            value, _, info = run(
                lambda y: f(y, *args), y0, max_iter=max_steps, tol=rtol, stop_mode="rel", **options
            )
        return Answer(value, info["rel_lowest"].flatten() <= rtol)

    return solve


def scipy(name: str, **options: Any) -> Solve:
    """A root finder of SciPy on the whole batch as one vector, judged by its worst sample.

    It claims success by returning, and failure by raising `NoConvergence`.
    """
    find = getattr(optimize, name)

    def solve(f: Map, y0: Tensor, args: Any, rtol: float, max_steps: int) -> Answer:
        flat = _Flat(f, y0, args)
        claimed = torch.ones(len(y0), dtype=torch.bool)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # overflow, on problems that diverge
                root = find(
                    flat.residual, flat.start, f_tol=rtol, tol_norm=flat.worst,
                    maxiter=max_steps, **options,
                )  # fmt: skip
        except optimize.NoConvergence as error:
            root, claimed = error.args[0], ~claimed
        return Answer(flat.state(root), claimed)

    return solve


class _Flat:
    """A batch as one NumPy vector, with a norm that is relative per sample."""

    def __init__(self, f: Map, y0: Tensor, args: tuple[Tensor, ...]):
        self.f, self.args, self.y0 = f, args, y0
        # NumPy has no bfloat16.
        self.dtype = torch.promote_types(y0.dtype, torch.float32)
        self.start = y0.to(self.dtype).flatten().numpy()
        self.scale = np.ones(len(y0))

    def state(self, vector: np.ndarray) -> Tensor:
        y = torch.as_tensor(np.ascontiguousarray(vector)).view(self.y0.shape)
        return y.to(self.y0.dtype)

    def residual(self, vector: np.ndarray) -> np.ndarray:
        y = self.state(vector)
        fy = self.f(y, *self.args)
        norm = torch.linalg.vector_norm(fy.double().flatten(1), dim=1)
        self.scale = norm.clamp_min(1e-300).numpy()
        return (fy.to(self.dtype) - y.to(self.dtype)).flatten().numpy()

    def worst(self, residual: np.ndarray) -> float:
        rows = np.asarray(residual, np.float64).reshape(len(self.y0), -1)
        return float((np.linalg.norm(rows, axis=1) / self.scale).max())


def our_contenders() -> dict[str, Contender]:
    """Every solver of ours with default options, and variants worth knowing."""
    found = {name: Contender("ours", name, ours(name)) for name in native_names()}
    for history in (5, 16):
        solve = ours("anderson", history=history)
        found[f"anderson, history {history}"] = Contender("ours", "anderson", solve)
    found["broyden, history 64"] = Contender("ours", "broyden", ours("broyden", history=64))
    return found


def compiled_contenders() -> dict[str, Contender]:
    """Some of ours over a map that went through torch.compile, and as one graph with it."""
    found = {
        f"{name}, f compiled": Contender("ours", name, ours(name), compiled=True)
        for name in ("picard", "anderson")
    }
    for name in ("picard", "anderson", "broyden"):
        found[f"{name}, one graph"] = Contender("ours", name, ours(name, "graph"), graph=True)
    return found


def their_contenders() -> dict[str, Contender]:
    """The solvers of torchdeq and SciPy that users choose between."""
    return {
        "torchdeq picard": Contender("torchdeq", "picard", torchdeq("fixed_point_iter")),
        "torchdeq anderson": Contender("torchdeq", "anderson", torchdeq("anderson")),
        "torchdeq anderson, lam 1e-10": Contender(
            "torchdeq", "anderson", torchdeq("anderson", lam=1e-10)
        ),
        "torchdeq broyden": Contender("torchdeq", "broyden", torchdeq("broyden")),
        "scipy anderson": Contender("scipy", "anderson", scipy("anderson")),
        "scipy broyden1": Contender("scipy", "broyden", scipy("broyden1")),
        "scipy newton_krylov": Contender("scipy", "newton_krylov", scipy("newton_krylov")),
    }
