"""What a solver promises beyond honesty, declared in its class and held against it by tests."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Promises:
    """On which maps a solver converges, and at what cost.

    `solvers.testing.check` tries every solver on the same problems. That no verdict is false, that
    counts are exact and that samples are independent, it demands on all of them. That the answer
    is reached, it demands where the solver promises it here. Let J = df/dy at the fixed point.

    Args:
        radius: It reaches fixed points at which the spectral radius of J is below this. 1: of
            every contraction, as Picard's iteration does. `math.inf`: also of maps that are none.
        real_radius: The same for maps whose J has real eigenvalues only, if it is larger.
        size: Entries of a sample, at most; None: any number.
        pace: k steps reduce the error of a contraction about as much as `pace` * k of Picard's
            do, or more. Budgets in the tests are 1 / `pace` times as large.
        one_call: A step costs one call of `f`. Otherwise it costs more, products with J for one.
        tokens: It can give every token of a row a verdict of its own, from which nobody learns of
            those behind it. Otherwise it refuses `batch_dims=2`.
        compacts: Independent samples that have stopped leave the batch, if `compact` says so.
            Otherwise `compact` has no effect.
        noise: Options with which it ends soon and well on a float32 map that is only accurate to
            bfloat16, where the default ones do not serve. None: it promises nothing there.
    """

    radius: float = 1.0
    real_radius: float = 0.0
    size: int | None = None
    pace: float = 1.0
    one_call: bool = True
    tokens: bool = True
    compacts: bool = True
    noise: Mapping[str, Any] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("radius", "real_radius"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)!r}.")
        if not 0 < self.pace <= 1:
            raise ValueError(
                f"`pace` must lie in (0, 1], got {self.pace!r}. 1 is at least as fast as Picard."
            )
        if self.size is not None and self.size < 1:
            raise ValueError(f"`size` must be at least 1, or None for any: got {self.size!r}.")
