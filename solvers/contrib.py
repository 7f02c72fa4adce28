"""Solvers of SciPy and torchdeq as black boxes, whose answer is judged anew by one evaluation.

Each is registered where its library is installed. What it returns or claims is never read.
"""

import dataclasses
import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from solvers.checks import check_counts
from solvers.counted_map import CountedMap
from solvers.lazy import load
from solvers.norms import row_norms
from solvers.packing import StatePacking
from solvers.promises import Promises
from solvers.registry import unknown
from solvers.solution import Result, Solution
from solvers.status import SampleStatus
from solvers.stopped import measure
from solvers.types import Flat, Map, State, Watch
from solvers.whole import WholeSolver

__all__ = [
    "PeerSolver",
    "ScipyAnderson",
    "ScipyBroyden1",
    "ScipyKrylov",
    "TorchdeqAnderson",
    "TorchdeqBroyden",
    "TorchdeqPicard",
]

# What most peers promise: see `Promises`. Above a noise floor they go on to the end of the budget.
ANYWHERE = Promises(radius=math.inf, one_call=False, tokens=False, compacts=False, noise=None)

Options: TypeAlias = Mapping[str, Any]


class Enough(Exception):
    """The peer is left: it has reached the tolerance, or used up the budget."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerSolver(WholeSolver):
    """Base of all adapters: `call` runs the peer, and everything else is common.

    A sample's answer is the best point at which the peer has evaluated `f`; one more call of `f`
    judges it by the rule of every solver. A peer that ends before its budget leaves samples that
    are not solved `stalled`. It works in float64, on y in units of a power of two near the first
    residual, since its constants are absolute. With `args` every sample has a call of its own;
    without, or where samples may be coupled, one call is for all.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        options: Of the peer's function, in its own words.

    Raises:
        ValueError: A tolerance is out of its range, or the peer has no such option.
    """

    promises: ClassVar[Promises] = ANYWHERE
    function: ClassVar[str]
    defaults: ClassVar[Options] = {}
    reserved: ClassVar[str] = ""

    options: Options = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.options:
            of_function = [*inspect.signature(load(self.function)).parameters][2:]
            known = [n for n in of_function if n not in ("kwargs", "kw", *self.reserved.split())]
            for name in set(self.options).difference(known):
                raise ValueError(unknown(f"option of {self.function!r},", name, known, "Options"))

    def call(self, f: "PeerMap", z: Tensor) -> object:
        """Run the peer from the vector `z`, without end: `f` ends it."""
        raise NotImplementedError

    def iterate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, f: Map, y0: State, args: tuple[Any, ...] = (), *, max_steps: int, batch_dims: int = 1,
        independent: bool | None = None, scale: Any = None, rhs: State | None = None,
        watch: Watch | None = None, compact: bool = True, memory: None = None,
    ) -> Solution:  # fmt: skip
        """Run the peer; arguments as of `Run`, but `compact` has no effect, nor is memory kept."""
        check_counts(max_steps, batch_dims)
        packing = StatePacking(y0, batch_dims, scale)
        self.check_tokens(packing)
        y, constant = packing.pack(y0), None if rhs is None else packing.pack(rhs)
        independent = bool(args) if independent is None else independent
        evaluate = CountedMap(f, args, packing, constant)
        status = SampleStatus(y, packing, solver=self, independent=independent, rhs=constant)
        if not packing.num_samples:
            return status.finish(0, 0)
        alone = bool(args) and independent and batch_dims > 0
        steps = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        sound, fy = torch.ones_like(steps, dtype=torch.bool), y
        for step in range(2):
            if step == 1:  # after the start, the answer
                y = y.clone()
                for rows in torch.arange(len(y), device=y.device).split(1 if alone else len(y)):
                    part = evaluate.of_rows(rows) if alone else evaluate
                    peer = PeerMap(part, y[rows], fy[rows], self, max_steps)
                    y[rows] = peer.answer()
                    steps[rows], sound[rows] = peer.num_steps * peer.moving, peer.sound
                    if alone:
                        evaluate.num_evals += part.num_evals
                        evaluate.rows_evaluated += part.rows_evaluated
            fy = evaluate(y)
            if torch.is_grad_enabled() and fy.requires_grad:
                raise NotImplementedError(
                    f"The steps of {type(self).__name__} cannot be recorded by autograd. Use "
                    "`backward='exact'` or another implicit mode, or a solver of this library."
                )
            status.update(y, fy, step)
            if watch is not None:
                watch(evaluate, status, y, fy)
            if max_steps == 0 or status.num_running == 0:
                break
        if status.mixes_steps:
            measure(status, evaluate(status.value))
        s = status.finish(evaluate.num_evals, evaluate.rows_evaluated)
        steps, sound = steps.view(s.result.shape), sound.view(s.result.shape)
        unsolved = s.result == Result.max_steps
        result = s.result.masked_fill(unsolved & (steps < max_steps), int(Result.stalled))
        result = result.masked_fill(unsolved & ~sound, int(Result.nonfinite))
        return dataclasses.replace(s, result=result, num_steps=steps)


class PeerMap:
    """The map as a peer calls it, of one vector z: keeps the best point, and ends the peer in time.

    Samples that have met NaN tell the peer f(z) = z from then on, so that they harm no other.
    """

    def __init__(self, f: CountedMap, y: Flat, fy: Flat, solver: PeerSolver, max_steps: int):
        self.f, self.start, self.solver, self.max_steps = f, (y, fy), solver, max_steps
        self.best, self.least, self.num_steps = y, math.inf, 0
        self.started, self.calling = False, False
        self.eps = max(torch.finfo(dtype).eps for dtype in f.packing.dtypes)
        self.sound = self.moving = row_norms(fy - y).isfinite()
        size = torch.maximum((fy - y).abs(), fy.abs() * self.eps)[self.sound]
        self.unit = 2.0 ** math.frexp(float(size.max()) if size.numel() else 1.0)[1]

    @torch.no_grad()
    def answer(self) -> Flat:
        """Call the peer until it ends or is ended; the best point."""
        try:
            self._judge(*self.start)
            with warnings.catch_warnings(), self.f.checked.full_precision():
                warnings.filterwarnings("ignore", module=self.solver.function.split(".")[0])
                self.solver.call(self, self._told(self.best))
        except (Enough, ValueError, ArithmeticError, torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
            if self.calling:  # an error of `f`, which is the caller's
                raise
        return self.best

    def __call__(self, z: Tensor) -> Tensor:
        """The value at `z`; at the first one, the start, it is known."""
        y, fy = self.start
        if self.started:
            y = self.f.packing.round((z.to(y.device).view(y.shape) * self.unit).to(y.dtype))
            self.sound = self.sound & y.isfinite().all(1)
            y = torch.where(self.sound[:, None], y, self.best)
            self.calling = True
            fy = self.f(y)
            self.calling = False
            self._judge(y, fy)
        self.started = True
        return self._told(torch.where(self.sound[:, None], fy, y)).to(z.device)

    def step(self) -> None:
        """Begin another step, if the budget allows it."""
        if self.num_steps == self.max_steps:
            raise Enough
        self.num_steps += 1

    def _told(self, y: Flat) -> Tensor:
        return (y.double().flatten() / self.unit).nan_to_num(0.0, 0.0, 0.0)

    def _judge(self, y: Flat, fy: Flat) -> None:
        """Keep what is better, and end the peer where all that can be are within tolerance."""
        norm, scale = row_norms(fy - y), row_norms(fy if self.f.rhs is None else self.f.rhs)
        self.sound = self.sound & norm.isfinite()
        near = norm <= self.solver.rtol * scale + self.solver.atol * y.shape[1] ** 0.5
        done, largest = (
            bool((near | ~self.sound).all()),
            float((norm * self.sound).nan_to_num(0.0).max()),
        )
        if done or largest < self.least:
            self.best, self.least = torch.where(self.sound[:, None], y, self.best), largest
        if done:
            raise Enough


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scipy(PeerSolver):
    reserved: ClassVar[str] = "iter maxiter f_tol f_rtol x_tol x_rtol callback"

    def call(self, f: PeerMap, z: Tensor) -> object:
        """Run SciPy's function on f(z) - z; an iteration is a step, however often it calls `f`."""

        def residual(x: Any) -> Any:
            return f(torch.from_numpy(x.copy())).numpy() - x

        f.step()
        ours = {"f_tol": 0.0, "maxiter": 10**9, "callback": lambda *_: f.step()}
        if "rdiff" in self.defaults:
            ours["rdiff"] = self.options.get("rdiff", f.eps**0.5)
        with np.errstate(all="ignore"):
            given = {**self.defaults, **self.options, **ours}
            return load(self.function)(residual, z.cpu().numpy(), **given)


@final
class ScipyAnderson(_Scipy):
    """Anderson mixing by `scipy.optimize.anderson` (V. Eyert, J. Comput. Phys. 1996)."""

    function = "scipy.optimize:anderson"
    defaults: ClassVar[Options] = {"alpha": 1.0, "line_search": None}


@final
class ScipyBroyden1(_Scipy):
    """Broyden's good method by `scipy.optimize.broyden1` (C. T. Kelley, SIAM 1995, ch. 7)."""

    function = "scipy.optimize:broyden1"
    defaults: ClassVar[Options] = {"alpha": 1.0, "line_search": None, "max_rank": 20}


@final
class ScipyKrylov(_Scipy):
    """Newton's method by `scipy.optimize.newton_krylov` (D. A. Knoll, J. Comput. Phys. 2004).

    Products with the Jacobian are differences, of the root of the precision of the state's dtype:
    where `f` computes in a narrower one, give the root of that as `rdiff`.
    """

    function = "scipy.optimize:newton_krylov"
    defaults: ClassVar[Options] = {"rdiff": None, "line_search": None, "inner_maxiter": 30}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Torchdeq(PeerSolver):
    reserved: ClassVar[str] = "max_iter tol stop_mode indexing return_final"

    def call(self, f: PeerMap, z: Tensor) -> object:
        """Run torchdeq's function on a batch of one; each point but the start is a step."""

        def of_batch(z: Tensor) -> Tensor:
            if f.started:
                f.step()
            return f(z[0])[None]

        given = {**self.defaults, **self.options, "max_iter": 10**9, "tol": 0.0}
        return load(self.function)(of_batch, z[None], **given)


@final
class TorchdeqPicard(_Torchdeq):
    """Picard iteration by torchdeq's `fixed_point_iter` (Z. Geng, J. Z. Kolter, TorchDEQ, 2023)."""

    promises = dataclasses.replace(ANYWHERE, radius=1.0)
    function = "torchdeq.solver.fp_iter:fixed_point_iter"


@final
class TorchdeqAnderson(_Torchdeq):
    """Anderson acceleration by torchdeq's `anderson_solver`.

    Its ridge `lam` is absolute, and ends the acceleration as residuals fall below its root.
    """

    function = "torchdeq.solver.anderson:anderson_solver"
    defaults: ClassVar[Options] = {"lam": 1e-14}


@final
class TorchdeqBroyden(_Torchdeq):
    """Broyden's good method by torchdeq's `broyden_solver`, whose memory often stalls when full."""

    function = "torchdeq.solver.broyden:broyden_solver"
    defaults: ClassVar[Options] = {"LBFGS_thres": 50}
