"""`autotune` with candidates that are compiled as well."""

import pytest
import torch
from torch import Tensor

import solvers
from solvers import autotune

X = torch.linspace(-1, 1, 24, dtype=torch.float64).view(6, 4)


def easy(y: Tensor, x: Tensor) -> Tensor:
    return 0.5 * torch.cos(y) + x


@pytest.mark.slow
@pytest.mark.long
def test_the_fastest_candidates_race_in_a_graph_as_well() -> None:
    tuning = autotune(
        easy, torch.zeros_like(X), X, candidates=["picard", "newton_krylov"], graphs=2
    )
    rows = {trial.solver: trial for trial in tuning.table}
    assert set(rows) == {"picard", "newton_krylov", "picard in a graph"}
    assert rows["picard in a graph"].num_evals == rows["picard"].num_evals
    assert rows["picard in a graph"].converged == 1.0
    assert tuning.loop == ("graph" if "in a graph" in tuning.table[0].solver else "eager")
    s = solvers.solve(easy, torch.zeros_like(X), X, solver=tuning.solver, loop=tuning.loop)
    assert s.converged.all()


def test_a_map_that_cannot_be_compiled_is_tried_in_the_eager_loop_only() -> None:
    def branching(y: Tensor, x: Tensor) -> Tensor:
        return easy(y, x) if bool(y.isfinite().all()) else y

    tuning = autotune(branching, torch.zeros_like(X), X, candidates=["picard"], graphs=1)
    assert tuning.loop == "eager"
    assert [trial.reason.split(":")[0] for trial in tuning.table] == ["won", "cannot be compiled"]
