"""Private names of torch: they load without a warning, and a missing one gives advice."""

import re
import tomllib
from pathlib import Path

import pytest
from forks import Run
from parameters import slow

from solvers import torch_internals

ROOT = Path(__file__).parents[2]
ADVICE = r"lacks a private name .*{}.* Tested versions of torch: 2\.13\.0 and .* `pip install"


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("torch._C._functorch", "maybe_get_level"),
        slow("torch._C._dynamo.eval_frame", "set_eval_frame"),
        slow("torch.autograd.forward_ad", "_current_level"),
        slow("torch.nn.Module", "_compiled_call_impl"),
    ],
)
def test_a_missing_name_is_reported_at_import(owner: str, name: str, new_process: Run) -> None:
    ended = new_process(f"import torch; del {owner}.{name}; import solvers")
    assert ended.returncode == 1
    assert re.search("ImportError: torch .*" + ADVICE.format(name), ended.stderr)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        slow("torch._higher_order_ops.while_loop", "while_loop"),
        ("torch._subclasses.fake_tensor", "FakeTensorMode"),
    ],
)
def test_a_missing_name_for_tasks_is_reported_at_its_first_use(
    module: str, name: str, new_process: Run
) -> None:
    remove = f"import sys, torch; del sys.modules[{module!r}].{name}; import solvers, implicit"
    assert new_process(remove).returncode == 0
    ended = new_process(f"{remove}\nfrom solvers.torch_internals import {name}")
    assert re.search("ImportError: torch .*" + ADVICE.format(name), ended.stderr)


def test_other_names_raise_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        torch_internals.absent  # noqa: B018


def test_the_first_gradient_of_a_transform_is_without_a_warning(new_process: Run) -> None:
    code = """
import torch, implicit
def solution(x):
    return implicit.fixed_point(lambda y, x: 0.5 * y + x, torch.zeros(1, 2), x).value.sum()
print(torch.func.grad(solution)(torch.ones(1, 2)).sum().round().item())
"""
    ended = new_process(code)
    assert ended[1:] == ("4.0\n", "")


def test_versions_are_those_of_the_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "torch>=2.13,<2.15" in project["dependencies"]
    assert "torch>=2.13,<2.15" in str(torch_internals.missing(ImportError("x")))
