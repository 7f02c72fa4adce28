"""SciPy's nonlinear solvers, in float64 on the CPU."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from solvers.base import check_at_least_0
from solvers.contrib.base import PeerSolver
from solvers.contrib.conversation import PeerMap
from solvers.methods.anderson import check_history
from solvers.methods.picard import check_damping
from solvers.promises import Promises
from solvers.registry import register

Vector = np.ndarray[Any, np.dtype[np.float64]]
LineSearch = Literal["armijo", "wolfe"] | None


class _Residual:
    """f(z) - z for vectors."""

    def __init__(self, f: PeerMap, z: Tensor):
        self.f, self.shape = f, z.shape
        self.probing = False

    def __call__(self, x: Vector) -> Vector:
        point = torch.from_numpy(x.copy()).view(self.shape)
        return (self.f(point, probe=self.probing) - point).numpy().ravel()


@dataclass(frozen=True, kw_only=True)
class _Scipy(PeerSolver):
    """What the three share: the residual f(z) - z of one flat vector, and a line search."""

    on_cpu: ClassVar[bool] = True

    line_search: LineSearch = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.line_search not in ("armijo", "wolfe", None):
            raise ValueError(
                f"`line_search` must be 'armijo', 'wolfe' or None, got {self.line_search!r}."
            )

    def drive(self, f: PeerMap, z: Tensor, eps: float) -> object:
        """Run SciPy's function; only an exception, its own or ours, or f(z) = z ends it."""
        residual = _Residual(f, z)
        # Our criterion stops the peer, so its own must never hold, and its budget never end.
        endless = {"f_tol": 0.0, "maxiter": 10**9, "line_search": self.line_search}
        with np.errstate(all="ignore"):
            return self.call(residual, z.numpy().ravel(), eps, endless)

    @abstractmethod
    def call(self, residual: _Residual, x0: Vector, eps: float, options: dict[str, Any]) -> object:
        """Call SciPy's function with `options` and those of this class."""


@final
@register("scipy.anderson", needs="scipy")
@dataclass(frozen=True, kw_only=True)
class ScipyAnderson(_Scipy):
    """Anderson mixing by `scipy.optimize.anderson`.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        line_search: "armijo", "wolfe" or None.
        history: Differences kept, at least 1; SciPy's `M`.
        damping: Weight kept on the old iterate, in [0, 1); SciPy's 1 - `alpha`.
        ridge: Tikhonov term relative to each squared difference, at least 0; SciPy's
            `w0` squared.

    Raises:
        ValueError: An option is out of its range.

    References:
        V. Eyert, A Comparative Study on Methods for Convergence Acceleration of Iterative
        Vector Sequences, J. Comput. Phys. 1996.
    """

    promises: ClassVar[Promises] = Promises(radius=math.inf)

    history: int = 5
    damping: float = 0.0
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_history(self.history)
        check_damping(self.damping)
        check_at_least_0("ridge", self.ridge)

    def call(self, residual: _Residual, x0: Vector, eps: float, options: dict[str, Any]) -> object:
        """Call `anderson`."""
        from scipy.optimize import anderson

        return anderson(
            residual, x0, M=self.history, alpha=1 - self.damping, w0=self.ridge**0.5, **options
        )


@final
@register("scipy.broyden1", needs="scipy")
@dataclass(frozen=True, kw_only=True)
class ScipyBroyden1(_Scipy):
    """Broyden's good method by `scipy.optimize.broyden1`.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        line_search: "armijo", "wolfe" or None.
        history: Rank-one updates, at least 1, after which SciPy drops all and begins anew;
            its `max_rank`.
        damping: Weight kept on the old iterate in the first step, in [0, 1); SciPy's
            1 - `alpha`.

    Raises:
        ValueError: An option is out of its range.

    References:
        C. T. Kelley, Iterative Methods for Linear and Nonlinear Equations, SIAM 1995, ch. 7.
    """

    promises: ClassVar[Promises] = Promises(radius=math.inf)

    history: int = 20
    damping: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_history(self.history)
        check_damping(self.damping)

    def call(self, residual: _Residual, x0: Vector, eps: float, options: dict[str, Any]) -> object:
        """Call `broyden1`."""
        from scipy.optimize import broyden1

        return broyden1(residual, x0, alpha=1 - self.damping, max_rank=self.history, **options)


@final
@register("scipy.krylov", needs="scipy")
@dataclass(frozen=True, kw_only=True)
class ScipyKrylov(_Scipy):
    """Newton's method with Krylov linear solves by `scipy.optimize.newton_krylov`.

    Products with the Jacobian are finite differences: calls of `f`, but no steps, so that
    `max_steps` bounds Newton's. They need all that `f` couples in one vector, so that without
    `args` the samples of a batch share one solve.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        line_search: "armijo", "wolfe" or None.
        method: Linear solver: "lgmres" or "gmres".
        inner_steps: Most steps of one linear solve, at least 1.
        difference: Relative step of the finite differences, above 0; SciPy's `rdiff`. None
            takes the root of the precision of the state's dtype: where `f` itself computes
            in a narrower one, give its root.

    Raises:
        ValueError: An option is out of its range.

    References:
        D. A. Knoll, D. E. Keyes, Jacobian-Free Newton-Krylov Methods, J. Comput. Phys. 2004.
    """

    promises: ClassVar[Promises] = Promises(
        radius=math.inf,
        one_call=False,
        tokens=False,  # its finite differences need all tokens of a row in one vector
        noise={"difference": 0.06},  # larger than the noise
    )
    grain: ClassVar[Literal["sample", "batch", "joint"]] = "joint"

    method: Literal["lgmres", "gmres"] = "lgmres"
    inner_steps: int = 30
    difference: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("lgmres", "gmres"):
            raise ValueError(f"`method` must be 'lgmres' or 'gmres', got {self.method!r}.")
        count = self.inner_steps
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"`inner_steps` must be an integer of at least 1, got {count!r}.")
        if self.difference is not None:
            check_at_least_0("difference", self.difference)
            if self.difference == 0:
                raise ValueError("`difference` must be above 0, got 0. Use None for the default.")

    def call(self, residual: _Residual, x0: Vector, eps: float, options: dict[str, Any]) -> object:
        """Call `newton_krylov`."""
        from scipy.optimize import newton_krylov
        from scipy.sparse import linalg

        steps = self.inner_steps
        method, settings = {
            "gmres": (linalg.gmres, {"restart": steps}),
            # As SciPy sets it: directions, not products, are carried over to the next system.
            "lgmres": (
                linalg.lgmres,
                {"inner_m": steps, "outer_v": [], "prepend_outer_v": True, "store_outer_Av": False},
            ),
        }[self.method]

        def solve(operator: Any, rhs: Vector, rtol: float, **_: Any) -> Any:
            residual.probing = True
            try:
                return method(operator, rhs, rtol=rtol, atol=0.0, maxiter=1, **settings)
            finally:
                residual.probing = False

        step = self.difference or eps**0.5
        return newton_krylov(residual, x0, method=solve, rdiff=step, **options)
