"""The conformance suite of modes itself: it runs anywhere, and finds what is wrong with a mode."""

import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import implicit
from implicit import AdjointMode, Exact, Phantom, testing
from solvers import Anderson

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class TwoTerms(AdjointMode):
    """u = v + J^T v, with its true bias and formula."""

    bias: ClassVar[float] = 0.4

    def in_place_of_inverse(self, jacobian: Tensor) -> Tensor:
        return torch.eye(len(jacobian), dtype=jacobian.dtype) + jacobian

    def adjoint(self, product: Any, v: Sequence[Tensor], context: Any) -> Sequence[Tensor]:
        return [a + b for a, b in zip(v, product(v), strict=True)]


class BiasAlone(TwoTerms):
    def in_place_of_inverse(self, jacobian: Tensor) -> None:  # type: ignore[override]
        return None


class BoastsOfItsBias(BiasAlone):
    bias: ClassVar[float] = 0.01


class BoastsOfItsFormula(TwoTerms):
    in_place_of_inverse = AdjointMode.in_place_of_inverse  # type: ignore[assignment]
    bias: ClassVar[float] = 1e-6


class WrongSecondTerm(TwoTerms):
    def adjoint(self, product: Any, v: Sequence[Tensor], context: Any) -> Sequence[Tensor]:
        return [a + 0.9 * b for a, b in zip(v, product(v), strict=True)]


class ForgetsALeaf(TwoTerms):
    def adjoint(self, product: Any, v: Sequence[Tensor], context: Any) -> Sequence[Tensor]:
        first, *rest = super().adjoint(product, v, context)
        return [first, *v[1:]] if rest else [first]


class DependsOnCompany(TwoTerms):
    def adjoint(self, product: Any, v: Sequence[Tensor], context: Any) -> Sequence[Tensor]:
        return [a + 1e-6 * a.mean(0) for a in super().adjoint(product, v, context)]


class Warns(TwoTerms):
    def adjoint(self, product: Any, v: Sequence[Tensor], context: Any) -> Sequence[Tensor]:
        warnings.warn("be careful", stacklevel=2)
        return super().adjoint(product, v, context)


def check(mode: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "be careful")
        testing.check(mode, solvers=["anderson", "picard"])


@pytest.mark.parametrize(
    "mode", ["exact", TwoTerms, BiasAlone, Phantom(steps=2, damping=0.2), Exact(solver="gmres")]
)
def test_names_classes_and_instances_are_checked(mode: Any) -> None:
    check(mode)


@pytest.mark.parametrize(
    ("mode", "prop"),
    [
        (BoastsOfItsBias, "the_error_is_within_the_bias_of_the_mode"),
        (BoastsOfItsFormula, "the_gradient_meets_its_formula"),
        (WrongSecondTerm, "the_gradient_meets_its_formula"),
        (ForgetsALeaf, "each_leaf_of_a_nested_state_has_its_gradient"),
        (DependsOnCompany, "the_gradient_meets_its_formula"),
        (Warns, "small_budgets_work"),
    ],
)
def test_each_defect_is_found_and_named(mode: type[TwoTerms], prop: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check(mode)
    assert f"\n  {prop}" in str(caught.value)
    assert str(caught.value).startswith(f"{mode.__name__}() fails ")


def test_a_failure_names_the_solver_and_values() -> None:
    with pytest.raises(AssertionError) as caught:
        testing.check(BoastsOfItsBias, solvers=[Anderson(history=3)])
    assert "_of_the_mode(Anderson(rtol=1e-05, atol=1e-08, history=3, " in str(caught.value)
    assert "relative error 0." in str(caught.value)
    assert ", bias 0.01" in str(caught.value)


def test_solvers_that_do_not_fit_are_left_out() -> None:
    testing.check("shine", solvers=["picard", "anderson"])
    with pytest.raises(ValueError, match="None of the solvers works with Shine"):
        testing.check("shine", solvers=["picard"])
    with pytest.raises(TypeError, match="Expected a backward mode name"):
        testing.check(dict)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Unknown backward mode 'exakt'"):
        testing.check("exakt")


def test_the_suite_runs_without_a_test_framework(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "for name in ('pytest', 'hypothesis', '_pytest'): sys.modules[name] = None\n"
        "import implicit\n"
        "implicit.testing.check('neumann', solvers=['broyden'])\n"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_pairs_are_those_that_work_together() -> None:
    pairs = implicit.testing.pairs()
    assert ("anderson", "shine") in pairs
    assert ("picard", "shine") not in pairs
    assert {mode for _, mode in pairs} == set(implicit.backward_modes())
