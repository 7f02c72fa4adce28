"""The stand-in device itself: what it refuses, computes and counts."""

import pytest
import standin_cases
from standin_process import on_standin


@pytest.mark.parametrize("name", standin_cases.REFUSED)
def test_a_tensor_of_the_cpu_is_refused(name: str) -> None:
    on_standin(standin_cases.refused, name)


@pytest.mark.parametrize("name", standin_cases.TAKEN)
def test_scalars_and_indices_of_the_cpu_are_taken(name: str) -> None:
    on_standin(standin_cases.taken, name)


@pytest.mark.parametrize("name", standin_cases.OPERATIONS)
def test_operations_give_the_values_of_the_cpu(name: str) -> None:
    on_standin(standin_cases.operation, name)


@pytest.mark.parametrize("name", standin_cases.WAITS)
def test_waits_are_counted(name: str) -> None:
    on_standin(standin_cases.waits, name)


def test_a_comparison_that_finds_another_value_or_device_fails() -> None:
    on_standin(standin_cases.comparisons_can_fail)


def test_the_waits_of_a_solve_are_counted_step_by_step() -> None:
    """At some steps one number is read, and all lines are of the solvers."""
    found = on_standin(standin_cases.counted, "picard", False, compact=False)
    assert len(found) > 5
    assert {waits.reads for waits in found} == {0, 1}
    assert all(line.startswith("solvers/") for waits in found for _, line in waits)
    assert len(on_standin(standin_cases.counted, "robust", True)) == 1
