"""The solver contract: frozen options, `init` and `step`, and a few declared hooks."""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from solvers.checks import KeywordOptions, check_at_least_0
from solvers.counted_map import CountedMap
from solvers.packing import StatePacking
from solvers.promises import Promises
from solvers.solution import Solution
from solvers.trees import take_rows
from solvers.types import Flat, Index, Map, Mask, State


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedPointSolver(KeywordOptions, ABC):
    """Base of all solvers: frozen options, and pure `init` and `step` on a matrix of rows.

    Args:
        rtol: Stop a sample once rms(f(y) - y) <= atol + rtol * rms(f(y)).
        atol: See `rtol`. In the units of `y`, per entry, whatever the state's size.

    Attributes:
        estimates_inverse: The memory can apply `transposed_inverse`, an estimate of
            (I - J^T)^-1.
        recordable: The steps can be differentiated through.
        whole: It overrides `iterate` and makes whole solves, so that no `Run` can step it.
        linear: For affine maps only, whose iterates may grow in between: growth ends no sample.
        calls_map: It overrides `move`, to call `f` within a step. Found out by itself.
        promises: On which maps it converges, and at what cost, for `solvers.testing.check`. By
            default: on contractions, as fast as Picard. A property where options decide.

    Raises:
        ValueError: A tolerance is negative or not finite.
    """

    estimates_inverse: ClassVar[bool] = False
    recordable: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    calls_map: ClassVar[bool] = False
    promises: ClassVar[Promises] = Promises()

    rtol: float = 1e-5
    atol: float = 1e-8

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.calls_map = cls.move is not FixedPointSolver.move

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            check_at_least_0(name, getattr(self, name))

    @abstractmethod
    def init(self, y: Flat) -> Any:
        """Memory before the first step: a pytree whose tensors have a row per sample."""

    @abstractmethod
    def step(self, y: Flat, fy: Flat, carry: Any) -> tuple[Flat, Any]:
        """Next iterate and memory, from `y`, `fy` = f(y) and the memory."""

    def init_static(self, y: Flat) -> Any:
        """As `init`, for a loop within a graph: no step may change the structure or a shape."""
        return self.init(y)

    def move(self, y: Flat, fy: Flat, carry: Any, f: CountedMap) -> tuple[Flat, Any]:
        """As `step`, for solvers that call `f` or its derivative once more within a step."""
        return self.step(y, fy, carry)

    def on_trial(self, carry: Any) -> Mask | None:
        """Samples whose newest point is only a trial, as in a line search; None: no sample.

        A trial may be NaN or far off without ending its sample. Within tolerance, it converges.
        """
        return None

    def given_up(self, carry: Any) -> Mask | None:
        """Samples that the solver will not move any more: they become `stalled`.

        Coupled ones do so once all samples that may influence them have stopped as well.
        """
        return None

    def keep(self, carry: Any, samples: Index) -> Any:
        """Drop all but these samples, in ascending order, from the memory."""
        return take_rows(carry, samples)

    def for_affine(self, max_steps: int) -> "tuple[FixedPointSolver, int]":
        """Return the solver, and its budget, that takes this one's place on affine maps."""
        return self, max_steps

    def check_graph(self) -> None:
        """Raise a ValueError if a graph cannot hold the solver's loop."""
        if self.whole or self.calls_map:
            how = "makes whole solves" if self.whole else "calls the map within its steps"
            raise ValueError(
                f"{type(self).__name__} {how}, which a graph cannot hold. Use another solver "
                "there, such as 'anderson', or pass `loop='eager'`."
            )

    def check_tokens(self, packing: StatePacking) -> None:
        """Raise a ValueError if tokens are to have verdicts but the solver mixes tokens."""
        if packing.has_tokens and not self.promises.tokens:
            raise ValueError(
                f"{type(self).__name__} solves all tokens of a row together, so that a token would "
                "see those behind it: it refuses `batch_dims=2`. Use another solver, or "
                "`batch_dims=1` for one verdict per row."
            )

    def iterate(
        self,
        f: Map,
        y0: State,
        args: tuple[Any, ...] = (),
        **options: Any,
    ) -> Solution:
        """Solve in the caller's grad mode; `solvers.solve` is the public entry.

        Under grad mode every update is recorded, so the result can be differentiated
        through the solver.

        Args:
            f: See `solve`.
            y0: First guess.
            args: Per-sample arguments of `f`.
            **options: As of `Run`.
        """
        from solvers.loop import Loop  # it needs this module

        return Loop(f, y0, *args, solver=self, **options).finish()
