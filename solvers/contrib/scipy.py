"""SciPy's nonlinear solvers, in float64 on the CPU, a sample at a time.

Our verdicts end them, so their own criterion must never hold, and their budget never end.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from torch import Tensor

from solvers.checks import check_at_least_0, check_damping, check_history, check_integer
from solvers.contrib.base import ANYWHERE, PeerMap, PeerSolver
from solvers.promises import Promises

Vector = np.ndarray[Any, np.dtype[np.float64]]


class _Residual:
    """f(z) - z for vectors."""

    def __init__(self, f: PeerMap, z: Tensor):
        self.f, self.z, self.probing = f, z, False

    def __call__(self, x: Vector) -> Vector:
        point = torch.from_numpy(x.copy()).view_as(self.z)
        return (self.f(point, probe=self.probing).double().cpu() - point).numpy().ravel()


@dataclass(frozen=True, kw_only=True)
class _Scipy(PeerSolver):
    promises: ClassVar[Promises] = ANYWHERE
    package: ClassVar[str] = "scipy"

    line_search: Literal["armijo", "wolfe"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.line_search not in ("armijo", "wolfe", None):
            raise ValueError(
                f"`line_search` must be 'armijo', 'wolfe' or None, got {self.line_search!r}."
            )

    def call(self, f: PeerMap, z: Tensor, eps: float) -> object:
        """Run SciPy's function on the residual of one flat vector."""
        endless = {"f_tol": 0.0, "maxiter": 10**9, "line_search": self.line_search}
        with np.errstate(all="ignore"):
            return self.find(_Residual(f, z), z.double().cpu().numpy().ravel(), eps, endless)

    @abstractmethod
    def find(self, residual: _Residual, x0: Vector, eps: float, options: dict[str, Any]) -> object:
        """Call SciPy's function with `options` and those of this class."""


@final
@dataclass(frozen=True, kw_only=True)
class ScipyAnderson(_Scipy):
    """Anderson mixing by `scipy.optimize.anderson` (V. Eyert, J. Comput. Phys. 1996).

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        line_search: "armijo", "wolfe" or None.
        history: Differences kept, at least 1; SciPy's `M`.
        damping: Weight kept on the old iterate, in [0, 1); SciPy's 1 - `alpha`.
        ridge: Tikhonov term relative to each squared difference, at least 0; SciPy's
            `w0` squared.
    """

    history: int = 5
    damping: float = 0.0
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_history(self.history)
        check_damping(self.damping)
        check_at_least_0("ridge", self.ridge)

    def find(self, residual: _Residual, x0: Vector, eps: float, options: dict[str, Any]) -> object:
        """Call `anderson`."""
        from scipy.optimize import anderson

        own = {"M": self.history, "alpha": 1 - self.damping, "w0": self.ridge**0.5}
        return anderson(residual, x0, **own, **options)


@final
@dataclass(frozen=True, kw_only=True)
class ScipyBroyden1(_Scipy):
    """Broyden's good method by `scipy.optimize.broyden1` (C. T. Kelley, SIAM 1995, ch. 7).

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        line_search: "armijo", "wolfe" or None.
        history: Rank-one updates, at least 1, after which SciPy drops all and begins anew;
            its `max_rank`.
        damping: Weight kept on the old iterate in the first step, in [0, 1); SciPy's
            1 - `alpha`.
    """

    history: int = 20
    damping: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_history(self.history)
        check_damping(self.damping)

    def find(self, residual: _Residual, x0: Vector, eps: float, options: dict[str, Any]) -> object:
        """Call `broyden1`."""
        from scipy.optimize import broyden1

        return broyden1(residual, x0, alpha=1 - self.damping, max_rank=self.history, **options)


@final
@dataclass(frozen=True, kw_only=True)
class ScipyKrylov(_Scipy):
    """Newton's method with Krylov linear solves by `scipy.optimize.newton_krylov`.

    Products with the Jacobian are finite differences: calls of `f`, but no steps, so that
    `max_steps` bounds Newton's (D. A. Knoll, D. E. Keyes, J. Comput. Phys. 2004).

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        line_search: "armijo", "wolfe" or None.
        method: Linear solver: "lgmres" or "gmres".
        inner_steps: Most steps of one linear solve, at least 1.
        difference: Relative step of the finite differences, above 0; SciPy's `rdiff`. None
            takes the root of the precision of the state's dtype: where `f` itself computes
            in a narrower one, give its root.
    """

    promises: ClassVar[Promises] = Promises(
        **{**vars(ANYWHERE), "noise": {"difference": 0.06}}  # larger than the noise
    )

    method: Literal["lgmres", "gmres"] = "lgmres"
    inner_steps: int = 30
    difference: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("lgmres", "gmres"):
            raise ValueError(f"`method` must be 'lgmres' or 'gmres', got {self.method!r}.")
        check_integer("inner_steps", self.inner_steps, 1)
        if self.difference is not None:
            check_at_least_0("difference", self.difference)
            if self.difference == 0:
                raise ValueError("`difference` must be above 0, got 0. Use None for the default.")

    def find(self, residual: _Residual, x0: Vector, eps: float, options: dict[str, Any]) -> object:
        """Call `newton_krylov`."""
        from scipy.optimize import newton_krylov
        from scipy.sparse import linalg

        method: Any = linalg.gmres
        settings: dict[str, Any] = {"restart": self.inner_steps}
        if self.method == "lgmres":  # as SciPy sets it: directions are carried over, not products
            carried = {"outer_v": [], "prepend_outer_v": True, "store_outer_Av": False}
            method, settings = linalg.lgmres, {"inner_m": self.inner_steps, **carried}

        def solve(operator: Any, rhs: Vector, rtol: float, **_: Any) -> Any:
            residual.probing = True
            try:
                return method(operator, rhs, rtol=rtol, atol=0.0, maxiter=1, **settings)
            finally:
                residual.probing = False

        step = self.difference or eps**0.5
        return newton_krylov(residual, x0, method=solve, rdiff=step, **options)
