"""The library on a device that is not the CPU, by the stand-in: the CPU's values, and no mixing."""

import models_on_both as models
import pytest
import solves_on_both as solves
import standin_cases
import tasks_on_both as tasks
from parameters import slow
from standin_process import on_standin

import implicit
import solvers
from solvers.registry import linear_names

NATIVE = [name for name in solvers.names() if "." not in name]
# Their steps consist of many evaluations.
SOLVES_WITHIN = ["newton_krylov", "robust"]
# The others take longer.
QUICK_SOLVES = {"independent", "coupled", "structured"}
QUICK_MODELS = {
    *(name for name in models.GRIDS if name.startswith("grid of")),
    "reasoner", "transformer of grids", "text by attention", "text by scan", "text by gru",
    "transformer", "Parcae",
}  # fmt: skip
QUICK_TASKS = {"sudoku", "maze", "lm"}
DERIVED = [name for name in implicit.backward_modes() if name != "shine"]  # which has no such rule


@pytest.mark.parametrize(
    ("name", "kind"),
    [slow(name, kind, unless=kind in QUICK_SOLVES) for name in NATIVE for kind in solves.SOLVES],
)
def test_solves(name: str, kind: str) -> None:
    on_standin(solves.solve, name, kind)


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("name", [name for name in NATIVE if name not in SOLVES_WITHIN])
def test_a_solve_seldom_waits(name: str, spread: bool) -> None:
    """No step waits for more than one number, and few for any; nothing is copied to the device."""
    found = on_standin(standin_cases.counted, name, spread)
    assert max(waits.reads for waits in found) == 1
    assert sum(waits.reads for waits in found) <= 0.3 * len(found)
    assert not any(waits.uploads for waits in found)


def test_a_step_that_solves_waits_less_often_than_it_multiplies() -> None:
    """Newton's method takes a dozen products with the Jacobian a step, and reads every few."""
    found = on_standin(standin_cases.counted, "newton_krylov", False)
    assert sum(waits.reads for waits in found) <= 6 * len(found)


@pytest.mark.parametrize("mode", implicit.backward_modes())
def test_gradients(mode: str) -> None:
    on_standin(solves.gradients, mode)


@pytest.mark.parametrize("name", linear_names())
def test_adjoint_equations(name: str) -> None:
    on_standin(solves.adjoint_solver, name)


@pytest.mark.parametrize("mode", [slow(mode, unless=mode == "phantom") for mode in DERIVED])
def test_derivatives(mode: str) -> None:
    on_standin(solves.derivatives, mode)


def test_diagnostics() -> None:
    on_standin(solves.diagnostics)


@pytest.mark.slow
def test_tools() -> None:
    on_standin(solves.tools)


@pytest.mark.parametrize(
    "name", [slow(name, unless=name in QUICK_MODELS) for name in (*models.GRIDS, *models.TEXTS)]
)
def test_models(name: str) -> None:
    if name in ("text by gpt2", "text by llama"):
        pytest.importorskip("transformers")
    on_standin(models.passes, name)


@pytest.mark.parametrize("name", ["grid of cells", slow("text by attention")])
def test_autocast(name: str) -> None:
    on_standin(models.autocast, name)


@pytest.mark.parametrize("name", [slow(name, unless=name in QUICK_TASKS) for name in tasks.CONFIGS])
def test_a_training_step(name: str) -> None:
    on_standin(tasks.step, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.CONFIGS)
def test_a_run_that_is_resumed(name: str) -> None:
    on_standin(tasks.run, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sudoku", "maze"])
def test_evaluation_and_service(name: str) -> None:
    on_standin(tasks.evaluation, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lm", "lm by parcae"])
def test_generation(name: str) -> None:
    on_standin(tasks.generation, name)
