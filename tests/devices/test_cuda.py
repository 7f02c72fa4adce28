"""The cases of the stand-in on a CUDA device, and what only such a device can show."""

import warnings
from collections.abc import Iterator
from typing import Any

import models_on_both as models
import on_both
import pytest
import solves_on_both as solves
import tasks_on_both as tasks
import torch
from torch import Tensor
from waits_per_step import tanh_contraction

import implicit
import solvers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NATIVE = [name for name in solvers.names() if "." not in name]
ONLY_STEP = [name for name in NATIVE if name not in ("newton_krylov", "robust")]


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    device = torch.device("cuda")
    monkeypatch.setattr(on_both, "REAL", [device])
    yield device
    torch.cuda.set_sync_debug_mode("default")
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["independent", "coupled", "short", "broken", "tokens"])
@pytest.mark.parametrize("name", NATIVE)
def test_solves(name: str, kind: str) -> None:
    solves.solve(name, kind)


@pytest.mark.parametrize("mode", implicit.backward_modes())
def test_gradients(mode: str) -> None:
    solves.gradients(mode)


@pytest.mark.parametrize("name", [*models.GRIDS, *models.TEXTS])
def test_models(name: str) -> None:
    models.passes(name)


@pytest.mark.parametrize("name", tasks.CONFIGS)
def test_a_training_step(name: str) -> None:
    tasks.step(name)


@pytest.mark.parametrize("name", ONLY_STEP)
def test_a_solve_seldom_waits(name: str, cuda: torch.device) -> None:
    """Counted by CUDA itself, which warns of each operation that waits for the device."""
    f, y0, *args = tanh_contraction(cuda)
    options: Any = {"solver": name, "max_steps": 200}
    solvers.solve(f, y0, *args, **options)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        s = solvers.solve(f, y0, *args, **options)
    waits = [one for one in found if "synchroniz" in str(one.message)]
    assert len(waits) <= 0.3 * s.num_evals + 1  # and one for the verdict of the solve


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("name", ["picard", "anderson", "broyden"])
def test_a_compiled_solve(name: str, mode: str, cuda: torch.device) -> None:
    f, y0, *args = tanh_contraction(cuda)
    solver = solvers.get_solver(name, rtol=1e-4)

    def solve(*args: Tensor) -> solvers.Solution:
        return solvers.solve(f, *args, solver=solver, max_steps=200, throw=False)

    with torch.no_grad():
        compiled: Any = torch.compile(solve, fullgraph=True, mode=mode)
        for _ in range(3):  # CUDA graphs are recorded at the second call
            found, expected = compiled(y0, *args), solve(y0, *args)
            assert found.converged.all()
            torch.testing.assert_close(found.value, expected.value, rtol=1e-3, atol=1e-3)
            assert (found.num_steps - expected.num_steps).abs().max() <= 1
