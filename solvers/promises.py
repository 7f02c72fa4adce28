"""What a solver promises beyond correct verdicts: declared in its class, and checked by tests."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Promises:
    """On which maps a solver converges, and at what cost.

    `solvers.testing.check` runs every solver on the same problems. It demands of every solver that
    no verdict is false, that counts are exact and that samples are independent. It demands that
    the solution is found only where the solver promises that here. J is df/dy at the fixed point.

    Args:
        radius: The solver converges where the spectral radius of J is below this bound. 1: on
            every contraction, like Picard's iteration. `math.inf`: on other maps as well.
        real_radius: The same bound for maps whose J has only real eigenvalues, if it is larger.
        size: Largest number of entries that a sample may have; None: any number.
        pace: k steps reduce the error of a contraction at least about as much as `pace` * k steps
            of Picard's iteration. Budgets in the tests are 1 / `pace` times as large.
        one_call: A step costs one call of `f`. False: it costs more, such as products with J.
        tokens: The solver can judge each token of a row by itself, and passes no information from
            a token to earlier ones. False: it refuses `batch_dims=2`.
        compacts: With `compact=True`, independent samples that have stopped leave the batch.
            False: `compact` has no effect.
        noise: Options with which the solver ends early and near the solution on a float32 map that
            is only accurate to bfloat16; empty if the defaults do. None: it promises nothing there.
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
