"""The conformance suite for solvers: those of this library, and your own.

`solvers.testing.check("picard")` raises an AssertionError that lists what a solver fails.

`PROPERTIES` are functions of a solver that yield a sentence per failure. `SEEDED` are those with
random problems, which also take a seed.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from solvers.base import FixedPointSolver
from solvers.registry import LINEAR, SOLVERS
from solvers.testing import answers, samples, tokens
from solvers.testing.evidence import Failures

Property = Callable[..., Failures]

PROPERTIES: list[Property] = [
    answers.reaches_the_answer_or_says_that_it_did_not,
    answers.residual_is_that_of_the_rounded_state,
    answers.the_slowest_sample_sets_the_number_of_evaluations,
    answers.every_small_budget_makes_progress_and_tells_the_truth,
    answers.no_budget_returns_a_point_worse_than_the_start,
    answers.no_steps_return_the_start,
    answers.divergence_is_reported_and_the_best_point_returned,
    answers.infinite_values_never_count_as_converged,
    answers.a_broken_start_is_named_as_such,
    answers.noise_floor_is_recognised_long_before_the_budget,
    answers.no_scale_breaks_the_verdict,
    answers.already_solved_costs_one_evaluation,
    answers.an_empty_batch_stays_empty,
    answers.nothing_is_recorded,
    answers.a_map_that_reuses_memory_is_never_falsely_converged,
    answers.a_map_that_takes_gradients_leaves_no_graph_behind,
    samples.a_diverging_sample_harms_no_other,
    samples.work_follows_need,
    samples.a_stopped_sample_is_frozen,
    samples.the_inputs_are_left_alone,
    samples.coupled_samples_without_args_have_no_stale_verdict,
    samples.one_unbatched_state_has_one_verdict,
    samples.one_number_is_a_state,
    samples.a_tree_is_solved_like_the_tensor_of_its_parts,
    samples.trees_keep_structure_and_dtypes,
    tokens.rows_without_tokens_keep_their_shape,
    tokens.tokens_have_verdicts_of_their_own,
    tokens.coupled_tokens_report_the_joint_residual,
    tokens.a_broken_token_harms_neither_other_rows_nor_earlier_tokens,
]

# The most failures that are listed for one property.
MOST_LISTED = 5

SEEDED: list[Property] = [
    samples.batch_mates_change_nothing,
    samples.batch_order_changes_nothing,
    samples.scaling_the_problem_scales_the_answer,
    samples.affine_contractions_are_solved,
    samples.permuting_the_entries_permutes_the_answer,
    samples.a_broken_sample_stays_alone,
    samples.leaving_the_batch_changes_no_answer,
    samples.coupled_samples_report_the_joint_residual_at_any_budget,
    tokens.coupled_tokens_report_the_joint_residual_at_any_budget,
    tokens.no_token_sees_what_follows_or_other_rows,
]


def check(solver: str | type[FixedPointSolver] | FixedPointSolver, seeds: int = 6) -> None:
    """Run the conformance suite on a solver, registered or not.

    It is held to what its `promises` declare.

    Args:
        solver: A registered name, a class, or an instance with options.
        seeds: Number of random problems for each property in `SEEDED`.

    Raises:
        AssertionError: The solver fails; the message lists each property, problem and value.
    """
    chosen = resolve(solver)
    report(chosen, [(p, (chosen,)) for p in PROPERTIES] + [
        (p, (chosen, seed)) for p in SEEDED for seed in range(seeds)
    ])  # fmt: skip


def resolve(solver: str | type[FixedPointSolver] | FixedPointSolver) -> FixedPointSolver:
    """Return an instance of a solver or linear solver, given by name, class or instance."""
    if isinstance(solver, str) and solver in LINEAR:
        return LINEAR.get(solver)
    return SOLVERS.resolve(solver() if isinstance(solver, type) else solver)


def report(subject: object, runs: Iterable[tuple[Property, tuple[Any, ...]]]) -> None:
    """Run properties and raise one AssertionError that lists what each of them found.

    Args:
        subject: The object under test, with which the message begins.
        runs: Properties, each with its arguments, of which the first is the subject.

    Raises:
        AssertionError: A property found a failure.
    """
    found: dict[str, list[str]] = {}
    for prop, arguments in runs:
        given = "".join(f"({argument})" for argument in arguments[1:])
        try:
            failures = list(itertools.islice(prop(*arguments), MOST_LISTED))
        except Exception as error:
            error.add_note(f"while checking {subject}: {prop.__name__}{given}")
            raise
        if failures:
            found[f"{prop.__name__}{given}"] = failures
    if found:
        lines = [f"  {name}: {failure}" for name, many in found.items() for failure in many]
        raise AssertionError(
            f"{subject} fails {len(found)} properties. Fix it, or declare in its class what it "
            "promises:\n" + "\n".join(lines)
        )
