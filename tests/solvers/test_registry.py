"""The registry: which class may take a name, and where unknown names are looked up."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import implicit
import solvers
from implicit.registry import MODES
from solvers import FixedPointSolver
from solvers.registry import LINEAR, SOLVERS, Registry
from solvers.tools.autotune import default_candidates

MODULE = """
from dataclasses import dataclass
from implicit import JacobianFree, register
from solvers import FixedPointSolver

@dataclass(frozen=True, kw_only=True)
class Mine(FixedPointSolver):
    share: float = 0.5

    def init(self, y):
        return None

    def step(self, y, fy, carry):
        return y + self.share * (fy - y), carry

@register("my_mode")
@dataclass(frozen=True, kw_only=True)
class Mode(JacobianFree):
    pass
"""

ENTRY_POINTS = """
[attractor_models.solvers]
plugin_solver = plugin_module:Mine
broken_solver = plugin_module:Missing
foreign = plugin_module:dataclass
lost = no_such_module:Mine

[attractor_models.linear_solvers]
plugin_linear = plugin_module:Mine

[attractor_models.backward_modes]
my_mode = plugin_module
"""


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that a test registers are gone afterwards."""
    for registry in (SOLVERS, LINEAR, MODES):
        monkeypatch.setattr(registry, "entries", dict(registry.entries))


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution with entry points."""
    (tmp_path / "plugin_module.py").write_text(MODULE)
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "plugin_module", raising=False)


def cell(share: float) -> type[FixedPointSolver]:
    """Define the class anew, as a notebook does each time that its cell is run."""

    @dataclass(frozen=True, kw_only=True)
    class Mine(FixedPointSolver):
        def init(self, y: Tensor) -> None:
            """Remember nothing."""

        def step(self, y: Tensor, fy: Tensor, carry: None) -> tuple[Tensor, None]:
            return torch.lerp(y, fy, share), None

    return Mine


def other() -> type[FixedPointSolver]:
    @dataclass(frozen=True, kw_only=True)
    class Mine(solvers.Picard):  # type: ignore[misc]
        pass

    return Mine


@pytest.mark.parametrize("register", [solvers.register, solvers.register_linear])
def test_the_same_class_again_replaces_the_one_before(register: Callable[..., Any]) -> None:
    registry = SOLVERS if register == solvers.register else LINEAR
    for share in (0.5, 1.0):
        newest = register("mine")(cell(share))
        assert registry.entries["mine"] is newest
    s = registry.get("mine").iterate(lambda y: 0 * y + 1, torch.zeros(1, 1), max_steps=1)
    assert s.value.item() == 1.0


def test_the_same_mode_again_replaces_the_one_before() -> None:
    def define() -> type:
        @implicit.register("mine")
        @dataclass(frozen=True, kw_only=True)
        class Mine(implicit.JacobianFree):  # type: ignore[misc]
            pass

        return Mine

    define()
    newest = define()
    assert MODES.entries["mine"] is newest


def test_another_class_under_the_name_is_refused() -> None:
    first = solvers.register("mine")(cell(0.5))
    message = r"'mine' is taken by .*cell\.<locals>\.Mine: choose another"
    with pytest.raises(ValueError, match=message):
        solvers.register("mine")(other())
    assert SOLVERS.entries["mine"] is first


def test_one_class_may_have_two_names() -> None:
    found = cell(0.5)
    solvers.register("mine")(found)
    solvers.register("mine_too")(found)
    assert SOLVERS.entries["mine"] is SOLVERS.entries["mine_too"]


def test_a_class_that_needs_a_missing_package_can_be_registered_again() -> None:
    """A cell may be run again after the package was installed."""
    registry: Registry[FixedPointSolver] = Registry("solver", FixedPointSolver, "solvers")
    registry.register("mine", needs="no_such_package")(cell(0.5))
    registry.register("mine", needs="no_such_package")(cell(0.5))
    assert registry.names() == []
    with pytest.raises(ValueError, match="is taken by"):
        registry.register("mine")(other())
    with pytest.raises(ImportError, match="pip install no_such_package"):
        registry.get("mine")
    registry.register("mine", needs="torch")(cell(0.5))
    assert registry.names() == ["mine"]
    assert registry.get("mine")


@pytest.mark.usefixtures("plugin")
def test_an_unknown_name_is_looked_up_among_entry_points() -> None:
    assert "plugin_solver" in solvers.names()
    assert type(solvers.get_solver("plugin_solver", share=1.0)).__name__ == "Mine"
    assert solvers.names().count("plugin_solver") == 1
    s = solvers.solve(lambda y: 0.5 * y + 1, torch.zeros(2, 3), solver="plugin_solver")
    assert s.converged.all()


@pytest.mark.usefixtures("plugin")
def test_modes_and_linear_solvers_have_entry_points_too() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    s = implicit.fixed_point(lambda y, x: 0.5 * y + x, 0 * x.detach(), x, backward="my_mode")
    s.value.sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 3))
    adjoint = implicit.Exact(solver="plugin_linear")
    s = implicit.fixed_point(lambda y, x: 0.5 * y + x, 0 * x.detach(), x, backward=adjoint)
    (found,) = torch.autograd.grad(s.value.sum(), x)
    # |error| <= rtol |u| / (1 - rho) = 4e-5
    assert torch.allclose(found, torch.full((2, 3), 2.0), rtol=0, atol=4e-5)


@pytest.mark.usefixtures("plugin")
def test_entry_points_are_listed_and_guessed() -> None:
    with pytest.raises(ValueError, match=r"plugin_solver.*Did you mean 'plugin_solver'\?"):
        solvers.get_solver("plugin_solvr")


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("broken_solver", "plugin_module:Missing", "cannot be loaded: .* no attribute 'Missing'"),
        ("lost", "no_such_module:Mine", "cannot be loaded: No module named 'no_such_module'"),
        ("foreign", "plugin_module:dataclass", "is none: A solver must derive from FixedPoint"),
    ],
)
def test_a_bad_entry_point_is_explained(name: str, value: str, why: str) -> None:
    said = f"solver '{name}', which plugin 1.0 names as '{value}', {why}.*Mend the entry point"
    with pytest.raises(ValueError, match=said):
        solvers.get_solver(name)


@pytest.mark.usefixtures("plugin")
def test_a_bad_entry_point_does_not_stop_the_others_from_being_compared() -> None:
    with pytest.warns(UserWarning, match=r"Not tried: .* plugin 1\.0") as caught:
        found = [type(solver).__name__ for solver in default_candidates()]
    assert len(caught) == 3
    assert {"Mine", "Anderson"} <= {*found}


def test_the_error_for_an_unknown_name_says_how_to_register_one() -> None:
    with pytest.raises(ValueError, match="once its module is imported: in a command, by `--import"):
        solvers.get_solver("zzz")
    with pytest.raises(ValueError, match=r"Did you mean 'picard'\?$"):
        solvers.get_solver("picart")


def test_a_missing_package_is_named_with_what_to_do() -> None:
    registry: Registry[solvers.FixedPointSolver] = Registry(
        "solver", solvers.FixedPointSolver, "solvers"
    )
    registry.register("plain")(solvers.Picard)
    registry.register("far.away", needs="no_such_package")(solvers.Picard)
    assert registry.names() == ["plain"]
    with pytest.raises(ImportError) as caught:
        registry.get("far.away", damping=0.5)
    assert str(caught.value) == (
        "The solver 'far.away' needs no_such_package, which is not installed. Run `pip install "
        "no_such_package`, or choose from: plain."
    )
    with pytest.raises(ValueError, match=r"'far\.away' is taken"):
        registry.register("far.away")(solvers.Anderson)
