"""What a solve returns: the point, the evidence for it, and one verdict per sample."""

import dataclasses
import enum
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from solvers.torch_internals import assert_async, pytree
from solvers.types import State


class Result(enum.IntEnum):
    """Why a sample stopped. Compare with `==`; `.message` says what to do next."""

    converged = 0
    max_steps = 1
    diverged = 2
    nonfinite = 3
    stalled = 4

    @property
    def message(self) -> str:
        """What the result means and what to do about it, in words."""
        return _MESSAGES[self]


_MESSAGES = {
    Result.converged: "The residual is within tolerance.",
    Result.max_steps: (
        "The step budget ran out. Raise `max_steps`, loosen `rtol`, or measure the spectral "
        "radius of df/dy: Picard needs it below 1."
    ),
    Result.diverged: (
        "The residual grew a million-fold, or y grew without bound while the residual did not "
        "fall: perhaps there is no fixed point. Damp the map (`damping`), start nearer to the "
        "solution, or make `f` contractive."
    ),
    Result.nonfinite: (
        "`f` was given or returned NaN or inf. Check `y0`, `args` and `f` for this sample. If they "
        "are finite, the iteration left the domain of `f`: try `solver='robust'` or 'picard', or, "
        "where these end so too, `solvers.root` with Newton's method."
    ),
    Result.stalled: (
        "The residual stopped falling above the tolerance. Where it is small, that is the noise "
        "floor: loosen `rtol`, or compute `f` in a wider dtype. Where it is not, the solver is "
        "stuck, or there is no fixed point: start elsewhere, or use another solver."
    ),
}


class HoldsValue:
    """Base of results with a tensor, or a pytree of them, in `value`.

    Taken for a tensor themselves, as in `s.mean()`, `s + 1`, `loss(s, target)` or
    `value, info = s`, they raise an error that names `value`.
    """

    if not TYPE_CHECKING:  # to a type checker, none of this exists

        def __getattr__(self, name: str) -> NoReturn:
            """Name `value` in the error for an attribute that tensors have."""
            kind = type(self).__name__
            if name.startswith("__") or not hasattr(Tensor, name):
                raise AttributeError(
                    f"{kind!r} object has no attribute {name!r}", name=name, obj=self
                )
            raise AttributeError(
                f"`{kind}` is no tensor and has no {name!r}: the tensor is its `value`, as in "
                f"`s.value.{name}`.",
                name=name,
                obj=self,
            )

        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> NoReturn:
            """Refuse to be an argument of a function of torch."""
            raise TypeError(
                f"`{getattr(func, '__name__', func)}` takes tensors: got `{cls.__name__}`. Pass "
                "its `value`, as `s.value`."
            )

        def __iter__(self) -> NoReturn:
            """Refuse to be unpacked."""
            raise TypeError(
                f"`{type(self).__name__}` is one object that cannot be unpacked or iterated over: "
                "take its fields by name, such as `s.value`."
            )

        def _no_tensor(self, other: Any) -> NoReturn:
            raise TypeError(
                f"`{type(self).__name__}` is no tensor to compute with: take its `value`, as "
                "`s.value`."
            )

        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _no_tensor
        __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = __getitem__ = _no_tensor


@dataclass(frozen=True, kw_only=True)
class Solution(HoldsValue):
    """A batch of approximate fixed points and the evidence for each.

    Attributes:
        value: Structure, shapes and dtypes of `y0`: the point where `residual` was measured.
            A sample that failed gets its best point, not its last. (Exceptions: under
            `backward="phantom"` the recorded steps move on from the measured point, and
            `Picard(keeps_last=True)` reports the last one.)
        residual: Shape `(*batch,)`. Root mean square of f(value) - value over the sample's
            entries; NaN where nothing was evaluated.
        result: Shape `(*batch,)`, int8 codes of `Result`.
        num_steps: Shape `(*batch,)`. Updates that each sample received.
        num_evals: Calls of `f` in the solve, counted exactly. On an accelerator, whose verdicts are
            read every few steps, up to seven more than the samples needed.
        rows_evaluated: Rows of the batch that `f` was called on, summed over its calls;
            compaction makes this smaller.
        aux: What `f` returned besides f(value), under `has_aux=True`; else None.
        adjoints: Solutions of the adjoint equation u = v + J^T u, appended by each backward
            pass through `value` (`backward="exact"` only). Empty before the first one.
        solved_by: Shape `(*batch,)`, int8: index in `tried` of the solver that converged for each
            sample, -1 if none did. None if only one solver was used.
        tried: Names of the solvers to which `solved_by` refers.
    """

    value: State
    residual: Tensor
    result: Tensor
    num_steps: Tensor
    num_evals: int
    rows_evaluated: int
    aux: Any = field(default=None, compare=False)
    adjoints: list["Solution"] = field(default_factory=list, compare=False)
    solved_by: Tensor | None = None
    tried: tuple[str, ...] = ()

    @property
    def converged(self) -> Tensor:
        """Shape `(*batch,)`, bool: within tolerance, and y has not run away.

        The test is residual <= atol + rtol * rms(f(value)) if the residual has fallen to a tenth of
        the first one; otherwise it takes the smaller of rms(f(value)) and rms(f(y0)).
        """
        return self.result == int(Result.converged)

    def rows(self, rows: Tensor) -> "Solution":
        """Select rows of the first batch dim; calls and rows evaluated stay those of all."""
        names = ("value", "residual", "result", "num_steps", "solved_by")
        parts = {
            name: pytree.tree_map(lambda leaf: leaf.index_select(0, rows), getattr(self, name))
            for name in names
            if getattr(self, name) is not None
        }
        return dataclasses.replace(self, **parts)

    def describe(self) -> str:
        """Say in words which samples failed, how, and what to do about it."""
        failed = ~self.converged
        count, total = int(failed.sum()), failed.numel()
        if count == 0 and total == 1:
            return f"The sample converged in {_most(self.num_steps)} steps."
        if count == 0:
            return f"All {total} samples converged, the slowest in {_most(self.num_steps)} steps."
        kinds = Counter(self.result[failed].tolist()).most_common()
        how = ", ".join(f"{number} {Result(code).name}" for code, number in kinds)
        advice = " ".join(Result(code).message for code, _ in kinds)
        worst = float(self.residual[failed].detach().nan_to_num(math.inf, posinf=math.inf).max())
        if _most(self.num_steps) == 0 and bool((self.result == int(Result.max_steps)).all()):
            measured = (
                f"a residual of up to {worst:.1e}" if self.num_evals else "no residual measured"
            )
            return f"No step was made, since `max_steps` is 0: the value is the start, {measured}."
        return (
            f"{count} of {total} samples did not converge in {_most(self.num_steps[failed])} "
            f"steps ({how}), worst residual {worst:.1e}. {advice}{self._turns()}{self._hint()}"
        )

    def _turns(self) -> str:
        """Say why the budget may have run out in fewer steps than `max_steps`."""
        if not self.tried or not bool((self.result == int(Result.max_steps)).any()):
            return ""
        return (
            f" {len(self.tried)} solvers were tried in turn, each with a share of `max_steps` of "
            "its own: steps that one of them leaves are not passed on."
        )

    def _hint(self) -> str:
        """A hint if every number was taken for a sample, which is often a mistake."""
        shape = self.result.shape
        numbers = all(leaf.shape == shape for leaf in pytree.tree_leaves(self.value))
        if not numbers or shape.numel() < 2:
            return ""
        return (
            f" Each of the {shape.numel()} numbers was taken for a sample of its own: pass "
            "`batch_dims=0` if they make up one state."
        )


def _most(num_steps: Tensor) -> int:
    return int(num_steps.max()) if num_steps.numel() else 0


IN_GRAPH = (
    "At least one sample did not converge. Within a graph no more can be said: pass `throw=False` "
    "and look at the solution."
)


class SolveError(RuntimeError):
    """At least one sample failed under `throw=True`; `solution` holds all that was found."""

    def __init__(self, solution: Solution):
        super().__init__(solution.describe())
        self.solution = solution

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the error by its solution, without the autograd graph.

        By default, Python rebuilds an exception from its message alone.
        """
        solution = _detached(self.solution)
        return type(self), (solution,), {**self.__dict__, "solution": solution}


def raise_if_failed(solution: Solution, independent: bool) -> Solution:
    """Pass a solution through if every sample converged, else raise a `SolveError`."""
    if torch.compiler.is_compiling():
        # A graph cannot raise an error that holds tensors.
        assert_async(solution.converged.all(), IN_GRAPH)
        return solution
    if not bool(solution.converged.all()):
        error = SolveError(solution)
        if solution.result.numel() > 1 and not independent:
            error.add_note(
                "Every sample was solved by coefficients of its own, as if no other sample moved. "
                "If `f` couples samples that belong to one state, as the nodes of a graph do, pass "
                "`batch_dims=0`: one set of coefficients and one verdict for all of `y0`."
            )
        elif bool(solution.converged.any()):
            error.add_note(
                "Samples that had converged were held still while the others went on. If `f` "
                "couples samples, pass `independent=False`, or `batch_dims=0` if they are one "
                "state."
            )
        raise error
    return solution


def _detached(part: Any) -> Any:
    """A tensor or a solution without its graph; anything else as it is."""
    if isinstance(part, Tensor):
        return part.detach()
    if isinstance(part, Solution):
        parts = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        return Solution(**pytree.tree_map(_detached, parts))
    return part
