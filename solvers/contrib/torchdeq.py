"""torchdeq's solvers, on batches of rows (Z. Geng, J. Z. Kolter, TorchDEQ, 2023).

Our verdicts end them, so their own criterion must never hold, and their budget never end.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from solvers.checks import check_at_least_0, check_damping, check_history, check_integer
from solvers.contrib.base import ANYWHERE, PeerMap, PeerSolver
from solvers.promises import Promises

ENDLESS = {"max_iter": 10**9, "tol": 0.0}


@dataclass(frozen=True, kw_only=True)
class _Torchdeq(PeerSolver):
    batched: ClassVar[bool] = True
    package: ClassVar[str] = "torchdeq"
    failures: ClassVar[tuple[type[Exception], ...]] = (
        torch.linalg.LinAlgError,  # pyright: ignore[reportPrivateImportUsage]
    )


@final
@dataclass(frozen=True, kw_only=True)
class TorchdeqPicard(_Torchdeq):
    """Damped Picard iteration by torchdeq's `fixed_point_iter`.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        damping: Weight kept on the old iterate, in [0, 1); torchdeq's 1 - `tau`.
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping)

    def call(self, f: PeerMap, z: Tensor, eps: float) -> object:
        """Run `fixed_point_iter`."""
        from torchdeq.solver.fp_iter import fixed_point_iter

        return fixed_point_iter(f, z, tau=1 - self.damping, **ENDLESS)


@final
@dataclass(frozen=True, kw_only=True)
class TorchdeqAnderson(_Torchdeq):
    """Anderson acceleration by torchdeq's `anderson_solver`.

    Its ridge `lam` is absolute, and stops the acceleration as residuals fall below its root. It is
    given as a tensor that follows each sample's residuals instead.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        history: Points kept, at least 2; torchdeq's `m`.
        damping: Weight kept on the old iterate, in [0, 1); torchdeq's 1 - `tau`.
        ridge: Tikhonov term relative to the largest squared residual kept, at least 0. Never
            below the rounding of the dtype, where one singular matrix would end every sample.
    """

    promises: ClassVar[Promises] = ANYWHERE

    history: int = 6
    damping: float = 0.0
    ridge: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("history", self.history, 2)
        check_damping(self.damping)
        check_at_least_0("ridge", self.ridge)

    def call(self, f: PeerMap, z: Tensor, eps: float) -> object:
        """Run `anderson_solver` with a ridge that keeps step with the residuals."""
        from torchdeq.solver.anderson import anderson_solver

        rounding = torch.finfo(z.dtype).eps
        lam = z.new_ones(len(z), 1, 1)
        squares: deque[Tensor] = deque(maxlen=self.history)

        def watched(z: Tensor) -> Tensor:
            fz = f(z)
            squares.append((fz - z).square().sum(1))
            largest = torch.stack(tuple(squares)).amax(0)
            lam[:, 0, 0] = (max(self.ridge, 8 * rounding) * largest).clamp_(min=rounding**3)
            return fz

        options: dict[str, Any] = {"m": self.history, "lam": lam, "tau": 1 - self.damping}
        return anderson_solver(watched, z, **options, **ENDLESS)


@final
@dataclass(frozen=True, kw_only=True)
class TorchdeqBroyden(_Torchdeq):
    """Broyden's good method by torchdeq's `broyden_solver`.

    Without its line search, which takes one step length for the whole batch. All memory is claimed
    at the start: 2 * history states. Once it is full, torchdeq often stalls.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        history: Rank-one updates kept, at least 1; torchdeq's `LBFGS_thres`.
    """

    promises: ClassVar[Promises] = ANYWHERE

    history: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_history(self.history)

    def call(self, f: PeerMap, z: Tensor, eps: float) -> object:
        """Run `broyden_solver`."""
        from torchdeq.solver.broyden import broyden_solver

        return broyden_solver(f, z, LBFGS_thres=self.history, **ENDLESS)
