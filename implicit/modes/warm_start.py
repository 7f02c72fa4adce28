"""Start an adjoint solve at the solution of the last one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from solvers.packing import StatePacking
from solvers.trees import as_wide


class WarmStart:
    """Carry adjoint solutions from one backward pass to the next.

    Pass one object to one layer: `Exact(warm_start=WarmStart())`. The tolerance is the same
    as from a cold start, so the gradient is as good; only the number of steps changes. A
    solution of other shapes is not used.

    Example:
        >>> from implicit import Exact, WarmStart
        >>> mode = Exact(warm_start=WarmStart())
    """

    def __init__(self) -> None:
        self.last: list[Tensor] | None = None

    def start(self, v: Sequence[Tensor], batch_dims: int) -> list[Tensor]:
        """Return the last solution if it has the shapes of v and is finite, and otherwise v.

        Samples whose v is zero start at zero.
        """
        last = self.last
        if last is None or [u.shape for u in last] != [leaf.shape for leaf in v]:
            return list(v)
        usable = [u.isfinite().all() for u in last]
        if not all(bool(u) for u in usable):
            return list(v)
        start = [u.to(leaf) for u, leaf in zip(last, v, strict=True)]
        packing = StatePacking(list(v), min(batch_dims, 1))
        asked = packing.pack(list(v)).any(1).view(packing.batch_shape)
        return [torch.where(as_wide(asked, u), u, 0.0) for u in start]

    def keep(self, u: Sequence[Tensor]) -> None:
        """Keep the leaves of a solution, converged or not, for the next solve."""
        self.last = [leaf.detach() for leaf in u]
