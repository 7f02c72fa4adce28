"""torchdeq's solvers: batches of rows on any device."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from solvers.base import check_at_least_0
from solvers.contrib.base import PeerSolver
from solvers.contrib.conversation import PeerMap
from solvers.methods.anderson import check_history
from solvers.methods.picard import check_damping
from solvers.promises import Promises
from solvers.registry import register

# Our criterion stops the peer, so its own must never hold, and its budget never end.
ENDLESS = {"max_iter": 10**9, "tol": 0.0}


@dataclass(frozen=True, kw_only=True)
class _Torchdeq(PeerSolver):
    """What the three share."""

    grain: ClassVar[Literal["sample", "batch", "joint"]] = "batch"
    failures: ClassVar[tuple[type[Exception], ...]] = (
        torch.linalg.LinAlgError,  # pyright: ignore[reportPrivateImportUsage]
    )


@final
@register("torchdeq.picard", needs="torchdeq")
@dataclass(frozen=True, kw_only=True)
class TorchdeqPicard(_Torchdeq):
    """Damped Picard iteration by torchdeq's `fixed_point_iter`.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        damping: Weight kept on the old iterate, in [0, 1); torchdeq's 1 - `tau`.

    Raises:
        ValueError: An option is out of its range.

    References:
        Z. Geng, J. Z. Kolter, TorchDEQ: A Library for Deep Equilibrium Models, 2023.
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping)

    def drive(self, f: PeerMap, z: Tensor, eps: float) -> object:
        """Run `fixed_point_iter`."""
        from torchdeq.solver.fp_iter import fixed_point_iter

        return fixed_point_iter(f, z, tau=1 - self.damping, **ENDLESS)


@final
@register("torchdeq.anderson", needs="torchdeq")
@dataclass(frozen=True, kw_only=True)
class TorchdeqAnderson(_Torchdeq):
    """Anderson acceleration by torchdeq's `anderson_solver`.

    Its ridge `lam` is absolute, and stops the acceleration as residuals fall below its root.
    It is given as a tensor that follows each sample's residuals instead. Points of the first
    two steps count here too: torchdeq itself returns the start for budgets of 1 and 2.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        history: Points kept, at least 2; torchdeq's `m`.
        damping: Weight kept on the old iterate, in [0, 1); torchdeq's 1 - `tau`.
        ridge: Tikhonov term relative to the largest squared residual kept, at least 0. Never
            below the rounding of the dtype, where one singular matrix would end every sample.

    Raises:
        ValueError: An option is out of its range.

    References:
        Z. Geng, J. Z. Kolter, TorchDEQ: A Library for Deep Equilibrium Models, 2023.
    """

    promises: ClassVar[Promises] = Promises(radius=math.inf)

    history: int = 6
    damping: float = 0.0
    ridge: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_history(self.history)
        if self.history < 2:
            raise ValueError(
                f"`history` must be at least 2 for torchdeq's Anderson, got {self.history}. Use "
                "'torchdeq.picard', or 'anderson', which counts differences."
            )
        check_damping(self.damping)
        check_at_least_0("ridge", self.ridge)

    def drive(self, f: PeerMap, z: Tensor, eps: float) -> object:
        """Run `anderson_solver` with a ridge that keeps step with the residuals."""
        from torchdeq.solver.anderson import anderson_solver

        rounding = torch.finfo(z.dtype).eps
        lam: Any = z.new_ones(len(z), 1, 1)
        squares: deque[Tensor] = deque(maxlen=self.history)

        def watched(z: Tensor) -> Tensor:
            fz = f(z)
            squares.append((fz - z).square().sum(1))
            largest = torch.stack(tuple(squares)).amax(0)
            lam[:, 0, 0] = (max(self.ridge, 8 * rounding) * largest).clamp_(min=rounding**3)
            return fz

        return anderson_solver(watched, z, m=self.history, lam=lam, tau=1 - self.damping, **ENDLESS)


@final
@register("torchdeq.broyden", needs="torchdeq")
@dataclass(frozen=True, kw_only=True)
class TorchdeqBroyden(_Torchdeq):
    """Broyden's good method by torchdeq's `broyden_solver`, without line search.

    Its line search takes one step length for the whole batch, so it is not offered. All
    memory is claimed at the start: 2 * history states. Once it is full, updates overwrite
    the oldest one, with which torchdeq often stalls: prefer `history` >= `max_steps`.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.
        history: Rank-one updates kept, at least 1; torchdeq's `LBFGS_thres`. The default
            keeps all of them within the default `max_steps`.

    Raises:
        ValueError: An option is out of its range.

    References:
        Z. Geng, J. Z. Kolter, TorchDEQ: A Library for Deep Equilibrium Models, 2023.
    """

    promises: ClassVar[Promises] = Promises(radius=math.inf)

    history: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_history(self.history)

    def drive(self, f: PeerMap, z: Tensor, eps: float) -> object:
        """Run `broyden_solver`."""
        from torchdeq.solver.broyden import broyden_solver

        return broyden_solver(f, z, LBFGS_thres=self.history, **ENDLESS)
