"""The conformance suite itself: it runs anywhere, and finds what is wrong with a solver."""

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from parameters import slow
from torch import Tensor

from solvers import FixedPointSolver, Picard, Promises, testing

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Plain(FixedPointSolver):
    """Picard's iteration, which passes the suite."""

    def init(self, y: Tensor) -> Any:
        return None

    def step(self, y: Tensor, fy: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return fy, carry


class MixesRows(Plain):
    def step(self, y: Tensor, fy: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return fy + 1e-6 * (fy - fy.mean(0)) if len(fy) > 1 else fy, carry


class KnowsRowZero(Plain):
    def step(self, y: Tensor, fy: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return torch.cat((fy[:1], (fy[1:] + y[1:]) / 2)), carry


class WritesIntoY(Plain):
    def step(self, y: Tensor, fy: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return y.copy_(fy), carry


class HasUnits(Plain):
    def step(self, y: Tensor, fy: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return y + (fy - y).clamp(-0.1, 0.1), carry


class OneEntryIsSpecial(Plain):
    def step(self, y: Tensor, fy: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return torch.cat((fy[:, :1], 1.5 * fy[:, 1:] - 0.5 * y[:, 1:]), 1), carry


class Slow(Plain):
    def step(self, y: Tensor, fy: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return (3 * y + fy) / 4, carry


class Narrows(Plain):
    def step(self, y: Tensor, fy: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return fy.float().to(fy.dtype), carry


class Memory(NamedTuple):
    count: Tensor


class OneMemoryForAll(Plain):
    """It keeps memory of the batch instead of each sample."""

    def init(self, y: Tensor) -> Memory:
        return Memory(torch.ones(1))

    def step(self, y: Tensor, fy: Tensor, carry: Memory) -> tuple[Tensor, Memory]:
        return fy, carry

    def keep(self, carry: Memory, samples: Tensor) -> Memory:
        return carry


class CallsMore(Plain):
    def move(self, y: Tensor, fy: Tensor, carry: Any, f: Any) -> tuple[Tensor, Any]:
        return f(fy), carry


class Boasts(Plain):
    promises: ClassVar[Promises] = Promises(radius=math.inf)


def failures(solver: FixedPointSolver, name: str) -> str:
    """The failures that a property finds, on its first random problem."""
    (prop,) = (p for p in (*testing.PROPERTIES, *testing.SEEDED) if p.__name__ == name)
    seed = (0,) if prop in testing.SEEDED else ()
    with pytest.raises(AssertionError) as caught:
        testing.report(solver, [(prop, (solver, *seed))])
    return str(caught.value)


@pytest.mark.parametrize("solver", ["picard", Picard, Picard()])
def test_names_classes_and_instances_are_taken(solver: Any) -> None:
    assert testing.resolve(solver) == Picard()


@pytest.mark.parametrize("solver", [OneMemoryForAll, slow(Plain), slow(Picard(damping=0.5))])
def test_correct_solvers_pass(solver: Any) -> None:
    testing.check(solver, seeds=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["neumann", "gmres"])
def test_linear_solvers_are_checked_on_affine_maps(name: str) -> None:
    testing.check(name, seeds=2)


@pytest.mark.parametrize(
    ("solver", "prop"),
    [
        (MixesRows, "batch_mates_change_nothing"),
        (KnowsRowZero, "batch_order_changes_nothing"),
        (HasUnits, "scaling_the_problem_scales_the_answer"),
        (OneEntryIsSpecial, "permuting_the_entries_permutes_the_answer"),
        (Slow, "every_small_budget_makes_progress_and_tells_the_truth"),
        (Narrows, "reaches_the_answer_or_says_that_it_did_not"),
        (CallsMore, "the_slowest_sample_sets_the_number_of_evaluations"),
    ],
)
def test_each_defect_is_found_and_named(solver: type[Plain], prop: str) -> None:
    found = failures(solver(), prop)
    assert f"\n  {prop}" in found
    assert found.startswith(f"{solver.__name__}(rtol=1e-05, atol=1e-08) fails ")


def test_a_failure_names_problem_and_values() -> None:
    found = failures(Boasts(), "reaches_the_answer_or_says_that_it_did_not")
    message = (
        "  reaches_the_answer_or_says_that_it_did_not: rotation-1.2, float64, 1 rows: 1 of 1 "
        "samples did not converge in "
    )
    assert message in found
    assert found.startswith("Boasts(rtol=1e-05, atol=1e-08) fails ")


def test_an_error_in_a_solver_says_where_it_came_up() -> None:
    with pytest.raises(ValueError, match="wrote into") as caught:
        testing.check(WritesIntoY)
    assert "while checking WritesIntoY(" in "".join(caught.value.__notes__)


@pytest.mark.parametrize(
    ("solver", "promises"),
    [
        slow(Slow, Promises(pace=0.19)),
        slow(CallsMore, Promises(one_call=False)),
        slow(Boasts, Promises(radius=0.5)),
        slow(Plain, Promises(radius=0.3, size=1, noise=None)),
    ],
)
def test_solvers_are_held_to_what_they_declare(
    solver: type[Plain], promises: Promises, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "promises", promises)
    testing.check(solver, seeds=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -1.0}, "`radius` must be at least 0, got -1.0."),
        ({"real_radius": math.nan}, "`real_radius` must be at least 0, got nan."),
        ({"pace": 0.0}, r"`pace` must lie in \(0, 1\], got 0.0."),
        ({"pace": 2.0}, r"`pace` must lie in \(0, 1\], got 2.0."),
        ({"size": 0}, "`size` must be at least 1, or None for any: got 0."),
    ],
)
def test_promises_are_in_their_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Promises(**options)


def test_objects_that_are_not_solvers_are_refused() -> None:
    with pytest.raises(ValueError, match="Unknown solver 'picart'"):
        testing.check("picart")
    with pytest.raises(TypeError, match="Expected a solver name"):
        testing.check(dict)  # type: ignore[arg-type]


def test_all_failures_are_listed_a_few_of_each_property() -> None:
    def many(solver: Any) -> Iterator[str]:
        yield from (f"case {i}" for i in range(100))

    def other(solver: Any, seed: int) -> Iterator[str]:
        yield "wrong"

    with pytest.raises(AssertionError) as caught:
        testing.report("mine", [(many, ("mine",)), (other, ("mine", 3))])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("mine fails 2 properties. ")
    assert lines[1:] == [*(f"  many: case {i}" for i in range(5)), "  other(3): wrong"]


@pytest.mark.slow
def test_the_suite_runs_without_a_test_framework(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "for name in ('pytest', 'hypothesis', '_pytest'): sys.modules[name] = None\n"
        "import solvers\n"
        "solvers.testing.check('anderson')\n"
        "assert not {'problems', 'oracles', 'tests'} & set(sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
