"""The conformance suite of backward modes: for those of this library, and for your own.

>>> import implicit
>>> implicit.testing.check("jacobian_free", solvers=["anderson"])

`PROPERTIES` are functions of a mode that yield a sentence per failure; `PAIRED` are functions of a
mode and the forward solver.
"""

from collections.abc import Iterable

from implicit.base import BackwardMode
from implicit.modes.unrolled import Unrolled
from implicit.registry import MODES, backward_modes
from implicit.testing import gradients
from solvers import FixedPointSolver, names
from solvers.contrib import PeerSolver
from solvers.registry import SOLVERS
from solvers.testing import Property, report, resolve

PROPERTIES: list[Property] = [
    gradients.the_start_gets_no_gradient_unless_steps_are_recorded,
    gradients.trees_and_tokens_have_the_gradient_of_the_joined_state,
    gradients.an_unbatched_state_has_its_gradient,
    gradients.compaction_changes_no_gradient,
    gradients.small_budgets_work,
    gradients.a_solve_without_a_step_has_a_graph,
]

PAIRED: list[Property] = [
    gradients.the_error_is_within_the_bias_of_the_mode,
    gradients.the_gradient_meets_its_formula,
    gradients.the_value_is_the_solvers,
    gradients.each_leaf_of_a_nested_state_has_its_gradient,
    gradients.gradients_of_the_zoo,
]


def check(
    mode: str | type[BackwardMode] | BackwardMode,
    solvers: Iterable[str | type[FixedPointSolver] | FixedPointSolver] | None = None,
) -> None:
    """Run the conformance suite on a backward mode, registered or not.

    It is held to its `bias` and, unless that is None, to its matrix `in_place_of_inverse`. To test
    the gradients through a solver of your own: `check("exact", solvers=["mine"])`.

    Args:
        mode: A registered name, a class, or an instance with options.
        solvers: The forward solvers to test it with, given likewise. By default, all that are
            registered, without those of other libraries. Those that do not work with the mode are
            left out.

    Raises:
        AssertionError: The mode fails; the message lists each property, solver and value.
        ValueError: None of the solvers works with the mode.
    """
    chosen = MODES.resolve(mode() if isinstance(mode, type) else mode)
    given = [resolve(solver) for solver in (ours() if solvers is None else solvers)]
    fitting = [solver for solver in given if fits(chosen, solver)]
    if not fitting:
        raise ValueError(f"None of the solvers works with {chosen}: got {given}.")
    report(chosen, [(p, (chosen,)) for p in PROPERTIES] + [
        (p, (chosen, solver)) for solver in fitting for p in PAIRED
    ])  # fmt: skip


def ours() -> list[str]:
    """Names of the registered solvers, without those of other libraries."""
    return sorted(n for n, cls in SOLVERS.classes().items() if not issubclass(cls, PeerSolver))


def fits(mode: BackwardMode, solver: FixedPointSolver) -> bool:
    """Whether a solver has what a mode needs: an inverse estimate, or steps that are recordable."""
    return (solver.estimates_inverse or not mode.needs_memory) and (
        solver.recordable or not isinstance(mode, Unrolled)
    )


def pairs() -> list[tuple[str, str]]:
    """Pairs of names of a registered solver and a backward mode that work together."""
    return [
        (solver, mode)
        for solver in names()
        for mode in backward_modes()
        if fits(MODES.get(mode), SOLVERS.get(solver))
    ]
